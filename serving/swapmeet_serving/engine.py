"""The engine: requests in, tokens out, one forward pass a step for all of them together."""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
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
from swapmeet_serving.gauges import Load, gauges, load_of
from swapmeet_serving.grammars import Grammar, Grammars
from swapmeet_serving.host_tier import HostTier
from swapmeet_serving.kernels import PAGE
from swapmeet_serving.kernels.threads import compute_alone
from swapmeet_serving.kv_pages import KvPages
from swapmeet_serving.live_requests import LiveRequests
from swapmeet_serving.logprobs import Logprobs
from swapmeet_serving.lora_weights import open_lora
from swapmeet_serving.meter import Meter
from swapmeet_serving.metrics import Family
from swapmeet_serving.request import Output, Request, check_tokens
from swapmeet_serving.runner import Logits, Runner, kernels_for
from swapmeet_serving.sampling import choose, not_finite
from swapmeet_serving.scheduler import Scheduler
from swapmeet_serving.sequence import Sequence, Slice
from swapmeet_serving.token_bytes import TokenBytes
from swapmeet_serving.withdrawals import Withdrawals

log = logging.getLogger("swapmeet.serving")


SWITCH_SECONDS = 0.0005
"""How long another thread may keep Python's lock from the engine's, which gives it away hundreds of times a step."""


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
        self._live = LiveRequests(self._scheduler, self.meter, model.eos, self._wake)
        self._withdrawals = Withdrawals(self._wake)

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
        return load_of(self._scheduler, self._pages, self._live.arrivals)

    @property
    def busy(self) -> bool:
        """Whether any request is under way."""
        return self.requests > 0

    @property
    def dead(self) -> bool:
        """Whether a step failed, after which nothing is answered any more."""
        return self._live.death is not None

    def families(self, tiers: Mapping[str, Collection[str]] = MappingProxyType({})) -> list[Family]:
        """Everything measured, for any thread; `tiers` names adapters that others keep ready, by identity or hash."""
        state = gauges(self._scheduler, self._pages, self._bank, self._live.arrivals)
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
            Exception: an adapter was withdrawn with this error.
        """
        check_tokens(request, self._vocabulary)
        sequence = Sequence.of(request, self._scheduler.room)
        self._withdrawals.require_none(sequence.adapters)
        self._live.add(
            sequence,
            TextStream(Detokenizer(self.tokenizer, self._special - request.shown), request.sampling.stop),
        )

    def cancel(self, request_id: str) -> None:
        """End a request, wherever it is; the next step gives its last output. Unknown ids are no error."""
        self._live.cancel(request_id)

    def withdraw(self, identity: str, error: Exception) -> "Future[int]":
        """Serve an adapter no more: the next step ends its requests with this error, and gives back all it had.

        Returns:
            How many requests ended, once they have.
        """
        return self._withdrawals.add(identity, error)

    def wait(self, timeout: float | None = None) -> None:
        """Return when a step may have something to do, or after so many seconds."""
        if not self._scheduler.running:
            self._wake.wait(timeout)

    def step(self) -> list[Output]:
        """Compute at most one token for every running request; returns what is new.

        Never raises: a failure ends all requests with `EngineDead`, and the engine.
        """
        outputs: list[Output] = []
        if self.dead:
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
        return self._live.fail(error)

    def close(self) -> None:
        """Let the background threads end."""
        self._loader.close()

    def _take_in(self) -> Iterator[Output]:
        """Take in arrivals, cancellations and adapters; gives the outputs of requests that ended by it."""
        self._wake.clear()
        arrivals, cancelled = self._live.take()
        self.meter.arrived(arrivals)
        for sequence in dict.fromkeys(cancelled):
            if self._live.has(sequence):
                yield self._live.end(sequence, "cancelled")
        yield from self._end_withdrawn()
        for identity, error in self._adapters.collect().items():
            for sequence in [each for each in self._scheduler.waiting if identity in each.adapters]:
                yield self._live.end(sequence, "error", error=error)

    def _end_withdrawn(self) -> Iterator[Output]:
        for withdrawal in self._withdrawals.take():
            identity, error = withdrawal.identity, withdrawal.error
            sequences = self._scheduler.using(identity)
            for sequence in sequences:
                yield self._live.end(sequence, "error", error=error)
            self._scheduler.forget_prefixes(identity)
            self._adapters.withdraw(identity, error)
            withdrawal.ended.set_result(len(sequences))

    def _refuse(self) -> Iterator[Output]:
        for sequence, error in self._scheduler.refused:
            yield self._live.end(sequence, "error", error=error)

    def _choose(self, logits: Logits, batch: list[Slice], began: float) -> Iterator[Output]:
        """The next token of each sequence that was computed to its end."""
        sequences = [each.sequence for each in batch if not each.sequence.missing]
        tokens = choose(logits.next, sequences) if sequences else []
        logprobs = self._logprobs.of(logits, sequences, tokens)
        failed = {sequences[row] for row in not_finite(logits.next)} if sequences else ()
        self.meter.stepped(sequences, began)
        for sequence, token in zip(sequences, tokens, strict=True):
            if sequence in failed:
                yield self._live.overflow(sequence)
            else:
                yield self._live.emit(sequence, token, logprobs.get(sequence))
