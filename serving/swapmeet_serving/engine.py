"""The engine: requests in, tokens out, one forward pass a step for all of them together."""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from transformers import AutoTokenizer

from swapmeet_registry.fingerprint import Quantization
from swapmeet_serving.adapter_bank import AdapterBank
from swapmeet_serving.adapter_loader import AdapterLoader
from swapmeet_serving.adapters import Adapters
from swapmeet_serving.base_model import load_base
from swapmeet_serving.constraints import Constraint
from swapmeet_serving.detokenizer import Detokenizer, TextStream, special_ids
from swapmeet_serving.errors import EngineDead, InvalidRequest, NotFinite
from swapmeet_serving.gauges import gauges
from swapmeet_serving.grammars import Grammar, Grammars
from swapmeet_serving.host_tier import HostTier
from swapmeet_serving.kernels import PAGE
from swapmeet_serving.kernels.threads import compute_alone
from swapmeet_serving.kv_pages import KvPages
from swapmeet_serving.logprobs import Logprobs
from swapmeet_serving.lora_weights import open_lora
from swapmeet_serving.meter import Meter
from swapmeet_serving.metrics import Family
from swapmeet_serving.mix import format_mix
from swapmeet_serving.request import FinishReason, Output, Request, TokenLogprob
from swapmeet_serving.runner import Logits, Runner, kernels_for
from swapmeet_serving.sampling import choose, not_finite
from swapmeet_serving.scheduler import Scheduler
from swapmeet_serving.sequence import Sequence, Slice
from swapmeet_serving.token_bytes import TokenBytes

log = logging.getLogger("swapmeet.serving")


SWITCH_SECONDS = 0.0005
"""How long another thread may keep Python's lock from the engine's, which gives it away hundreds of times a step."""


@dataclass(frozen=True, slots=True)
class Load:
    """What an engine has to do: requests, KV pages left, and adapters that waiting requests want."""

    running: int
    waiting: int
    free_pages: int
    wanted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Live:
    sequence: Sequence
    text: TextStream


class Engine:
    """Serves one NF4 base and any number of LoRA adapters on it.

    `submit` and `cancel` may be called from any thread; `step` is for one thread, in a loop with `wait`. Make the
    engine on that very thread: each thread that computes gets OpenMP threads of its own, which then lack cores.

    Args:
        base: folder of a transformers causal language model with safetensors weights.
        fetch: gives the folder of an adapter's files by the adapter's identity, which is opaque here. Called
            on background threads, without any lock held; what it raises reaches the requests that asked.
        adapter_bytes: device memory for adapters' weights.
        host_bytes: host memory for those that had to leave the device, if that has memory of its own.
        kv_bytes: memory for keys and values.
        max_batch: most sequences computed together.
        max_queue: most requests that wait.
        max_step_tokens: most tokens that one step computes; longer prompts are computed in pieces, between which
            the others go on.
        loaders: most adapters fetched or read at once.
        threads: CPU threads of a forward pass; all that the process may use if None.
        exact: compute in the very order of transformers and PEFT, bit for bit, and slower.

    Raises:
        BaseInvalid: the base can not be loaded.
        BaseUnsupported: the base needs something the engine does not compute.
    """

    def __init__(
        self,
        base: Path,
        *,
        fetch: Callable[[str], Path],
        adapter_bytes: int = 256 << 20,
        host_bytes: int = 4 << 30,
        kv_bytes: int = 512 << 20,
        max_batch: int = 32,
        max_queue: int = 256,
        max_step_tokens: int = 256,
        loaders: int = 4,
        threads: int | None = None,
        device: str = "cpu",
        quantization: Quantization | None = None,
        exact: bool = False,
    ) -> None:
        # Explicitly, because Ray starts its workers with OMP_NUM_THREADS=1.
        torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
        sys.setswitchinterval(SWITCH_SECONDS)
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)  # where Triton and CUDA graphs work
        model = load_base(base, device, quantization)
        self.tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
        self.context_length = model.context_length
        self._eos = model.eos
        self._vocabulary = model.vocabulary
        self._special = special_ids(self.tokenizer)
        self._grammars = Grammars(self.tokenizer, model.vocabulary, model.eos)
        self._logprobs = Logprobs(TokenBytes(self.tokenizer), self._special)
        kernels = kernels_for(model, kv_bytes, exact=exact)
        self._runner = Runner(model, kernels)
        self.meter = Meter()
        self._wake = threading.Event()
        self._loader = AdapterLoader(loaders, self._wake.set, compute_alone)
        self._bank = AdapterBank(adapter_bytes)
        self._host = HostTier(0 if device == "cpu" else host_bytes)  # a CPU's device memory is the host's
        self._adapters = Adapters(
            self._bank,
            self._loader,
            fetch,
            lambda folder, identity: open_lora(folder, identity, model.layers, kernels),
            kernels.bring,
            self._host,
            self.meter,
        )
        self._pages = KvPages(kernels.pages, PAGE)
        self._page_bytes = PAGE * model.token_bytes
        self._scheduler = Scheduler(
            self._pages,
            self._adapters,
            context_length=model.context_length,
            max_batch=max_batch,
            max_queue=max_queue,
            max_step_tokens=max_step_tokens,
            whole=kernels.whole,
        )
        self._lock = threading.Lock()  # guards what other threads touch, which is all below
        self._live: dict[str, _Live] = {}
        self._arrivals: list[Sequence] = []
        self._cancelled: list[Sequence] = []
        self._death: BaseException | None = None

    @property
    def resident(self) -> list[str]:
        """Identities of the adapters in memory, those first that would be evicted first."""
        return self._adapters.resident

    @property
    def in_host_memory(self) -> list[str]:
        """Identities of the adapters of which host memory has a copy for the device."""
        return self._host.identities

    @property
    def room(self) -> int:
        """How many tokens one sequence can have in all."""
        return self._scheduler.room

    def kv_bytes(self, tokens: int) -> int:
        """What keys and values of a sequence of so many tokens take."""
        return self._pages.pages_for(tokens) * self._page_bytes

    @property
    def requests(self) -> int:
        """How many requests are under way."""
        return len(self._live)

    @property
    def load(self) -> Load:
        """How much there is to do, and for which adapters."""
        return Load(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting) + len(self._arrivals),
            free_pages=self._pages.free,
            wanted=tuple({adapter for each in tuple(self._scheduler.waiting) for adapter in each.adapters}),
        )

    @property
    def busy(self) -> bool:
        """Whether any request is under way."""
        return self.requests > 0

    @property
    def dead(self) -> bool:
        """Whether a step failed, after which nothing is answered any more."""
        return self._death is not None

    def families(self, tiers: Mapping[str, Collection[str]] = MappingProxyType({})) -> list[Family]:
        """Everything measured, for any thread; `tiers` names adapters that others keep ready, by identity or hash."""
        state = gauges(self._scheduler, self._pages, self._bank, len(self._arrivals))
        host = {"host": self.in_host_memory} if self._host.budget else {}
        return [*state, *self.meter.families({"device": self.resident, **host, **tiers})]

    def compile(self, constraint: Constraint) -> Grammar:
        """What a request's `grammar` may be. For any thread but the one that steps: it can take a second.

        Raises:
            InvalidRequest: the constraint can not be enforced; the message says why.
        """
        return self._grammars.compile(constraint)

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            InvalidRequest: the prompt is empty or holds an unknown token, as may `logit_bias`, or the id is in use.
            ContextTooLong: prompt and max_tokens can never fit.
            Overloaded: too many requests wait already.
            TooManyRequests: too many of the same tenant's.
            EngineDead: a step failed before.
        """
        self._check_tokens(request)
        sequence = Sequence.of(request, self._scheduler.room)
        text = TextStream(Detokenizer(self.tokenizer, self._special - request.shown), request.sampling.stop)
        with self._lock:
            if self._death:
                raise _dead(self._death)
            if request.id in self._live:
                raise InvalidRequest(f"A request with the id {request.id} is under way. Choose another.")
            self._scheduler.check(sequence, coming=tuple(self._arrivals))
            self._live[request.id] = _Live(sequence, text)
            self._arrivals.append(sequence)
        self._wake.set()

    def cancel(self, request_id: str) -> None:
        """End a request, wherever it is; the next step gives its last output. Unknown ids are no error."""
        with self._lock:
            live = self._live.get(request_id)
            if live:
                self._cancelled.append(live.sequence)
        self._wake.set()

    def wait(self, timeout: float | None = None) -> None:
        """Return when a step may have something to do, or after so many seconds."""
        if not self._scheduler.running:
            self._wake.wait(timeout)

    def step(self) -> list[Output]:
        """Compute at most one token for every running request; returns what is new.

        Never raises: a failure ends all requests with `EngineDead`, and the engine.
        """
        outputs: list[Output] = []
        if self._death:
            return outputs
        try:
            outputs += self._take_in()
            began = time.monotonic()
            batch = self._scheduler.schedule()
            self.meter.admitted([each.sequence for each in batch])
            outputs += self._refuse()
            if batch:
                logits = self._runner.run(batch, self._adapters.weights)
                self._scheduler.computed(batch)
                outputs += self._choose(logits, batch, began)
        except Exception as error:
            outputs += self.fail(error)  # what ended before in this step keeps its output
        return outputs

    def fail(self, error: BaseException) -> list[Output]:
        """End all requests with `EngineDead`, and the engine; for the thread that steps, where it can not go on."""
        log.error("the engine ends", exc_info=error)
        with self._lock:
            self._death = error
            live, self._live = self._live, {}
        outputs = []
        for each in live.values():
            dead = _dead(error)
            self.meter.ended(each.sequence, "error", dead)
            outputs.append(replace(_output(each.sequence), finish_reason="error", error=dead))
        return outputs

    def close(self) -> None:
        """Let the background threads end."""
        self._loader.close()

    def _check_tokens(self, request: Request) -> None:
        if not request.prompt:
            raise InvalidRequest("The prompt is empty. Give at least one token.")
        if not 0 <= min(request.prompt) <= max(request.prompt) < self._vocabulary:
            raise InvalidRequest(f"The prompt holds a token id outside of 0 to {self._vocabulary - 1}.")
        unknown = [token for token, _ in request.sampling.logit_bias if not 0 <= token < self._vocabulary]
        if unknown:
            raise InvalidRequest(f"logit_bias names the token id {unknown[0]}, outside of 0 to {self._vocabulary - 1}.")

    def _take_in(self) -> Iterator[Output]:
        """Take in arrivals, cancellations and adapters; gives the outputs of requests that ended by it."""
        self._wake.clear()
        with self._lock:
            arrivals, self._arrivals = self._arrivals, []
            cancelled, self._cancelled = self._cancelled, []
            for sequence in arrivals:
                self._scheduler.add(sequence)
        self.meter.arrived(arrivals)
        for sequence in dict.fromkeys(cancelled):
            if self._is_live(sequence):
                yield self._end(sequence, "cancelled")
        for identity, error in self._adapters.collect().items():
            for sequence in [each for each in self._scheduler.waiting if identity in each.adapters]:
                yield self._end(sequence, "error", error=error)

    def _refuse(self) -> Iterator[Output]:
        for sequence, error in self._scheduler.refused:
            yield self._end(sequence, "error", error=error)

    def _choose(self, logits: Logits, batch: list[Slice], began: float) -> Iterator[Output]:
        """The next token of each sequence that was computed to its end."""
        sequences = [each.sequence for each in batch if not each.sequence.missing]
        tokens = choose(logits.next, sequences) if sequences else []
        logprobs = self._logprobs.of(logits, sequences, tokens)
        failed = {sequences[row] for row in not_finite(logits.next)} if sequences else ()
        self.meter.stepped(sequences, began)
        for sequence, token in zip(sequences, tokens, strict=True):
            if sequence in failed:
                yield self._end(sequence, "error", error=_overflowed(sequence))
            else:
                yield self._emit(sequence, token, logprobs.get(sequence))

    def _is_live(self, sequence: Sequence) -> bool:
        live = self._live.get(sequence.request.id)
        return live is not None and live.sequence is sequence

    def _emit(self, sequence: Sequence, token: int, logprob: TokenLogprob | None) -> Output:
        sampling, stream = sequence.request.sampling, self._live[sequence.request.id].text
        matcher = sequence.matcher
        if matcher and matcher.problem:  # the token was chosen without it
            return self._end(sequence, "error", error=_unfollowed(sequence, matcher.problem))
        if not sequence.max_tokens:
            return self._end(sequence, "length")
        sequence.append(token)
        if matcher:
            matcher.advance(token)
        ended = token in self._eos and not (sampling.ignore_eos and not matcher)
        text = "" if ended else stream.add(token)
        output = _output(sequence, (token,), text, (logprob,) if logprob else ())
        if ended or stream.stopped or (matcher and matcher.complete):
            return self._end(sequence, "stop", output)
        if sequence.completion_tokens == sequence.max_tokens:
            return self._end(sequence, "length", output)
        return output

    def _end(
        self, sequence: Sequence, reason: FinishReason, output: Output | None = None, error: Exception | None = None
    ) -> Output:
        """Let a sequence go; what it gives last is `output`, if any, and the rest of its text."""
        output = output or _output(sequence)
        stream = self._live[sequence.request.id].text
        rest = "" if error else stream.finish()
        if stream.stopped:
            reason = "stop"
        self._scheduler.remove(sequence, spoilt=isinstance(error, NotFinite))
        with self._lock:
            del self._live[sequence.request.id]
        self._wake.set()  # there is room for another
        self.meter.ended(sequence, reason, error)
        timeline = sequence.timeline
        return replace(output, text=output.text + rest, finish_reason=reason, error=error, timeline=timeline)


def _output(
    sequence: Sequence, tokens: tuple[int, ...] = (), text: str = "", logprobs: tuple[TokenLogprob, ...] = ()
) -> Output:
    """What is new of a sequence; its prompt's log-probabilities are given once."""
    of_prompt, sequence.prompt_logprobs = tuple(sequence.prompt_logprobs), []
    return Output(
        request_id=sequence.request.id,
        token_ids=tokens,
        text=text,
        prompt_tokens=len(sequence.request.prompt),
        completion_tokens=sequence.completion_tokens,
        cached_tokens=sequence.cached_prompt or 0,
        logprobs=logprobs,
        prompt_logprobs=of_prompt,
    )


def _unfollowed(sequence: Sequence, problem: str) -> InvalidRequest:
    return InvalidRequest(
        f"The answer's grammar can not be enforced after {sequence.completion_tokens} tokens: {problem}. Simplify it."
    )


def _overflowed(sequence: Sequence) -> NotFinite:
    whose = format_mix(sequence.mix) or "the base"
    return NotFinite(
        f"Numbers in {whose} overflow at this prompt, and it gives no finite logits. Lower its weight or its alpha."
    )


def _dead(cause: BaseException) -> EngineDead:
    error = EngineDead(f"The engine stopped after {type(cause).__name__}: {cause}. Start it anew.")
    error.__cause__ = cause
    return error
