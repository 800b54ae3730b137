"""Requests from their arrival at an engine to their last output."""

import threading
from collections.abc import Collection
from dataclasses import dataclass, replace

from swapmeet_serving.detokenizer import TextStream
from swapmeet_serving.errors import EngineDead, InvalidRequest, NotFinite
from swapmeet_serving.meter import Meter
from swapmeet_serving.mix import format_mix
from swapmeet_serving.request import FinishReason, Output, TokenLogprob
from swapmeet_serving.scheduler import Scheduler
from swapmeet_serving.sequence import Sequence


@dataclass(frozen=True, slots=True)
class _Live:
    sequence: Sequence
    text: TextStream


class LiveRequests:
    """What an engine has under way. Any thread may `add` and `cancel`; the rest is for the one that steps.

    Args:
        eos: tokens that end an answer.
        wake: called when a step may have something to do.
    """

    def __init__(self, scheduler: Scheduler, meter: Meter, eos: Collection[int], wake: threading.Event) -> None:
        self._scheduler = scheduler
        self._meter = meter
        self._eos = eos
        self._wake = wake
        self._lock = threading.Lock()  # guards what other threads touch, which is all below
        self._live: dict[str, _Live] = {}
        self._arrivals: list[Sequence] = []
        self._cancelled: list[Sequence] = []
        self._death: BaseException | None = None

    def __len__(self) -> int:
        return len(self._live)

    @property
    def arrivals(self) -> int:
        """How many no step has seen yet."""
        return len(self._arrivals)

    @property
    def death(self) -> BaseException | None:
        """What ended the engine, if anything did."""
        return self._death

    def add(self, sequence: Sequence, text: TextStream) -> None:
        """Take a request for the next step to find.

        Raises:
            InvalidRequest: its id is in use.
            ServingError: the scheduler can not take it.
            EngineDead: the engine ended.
        """
        name = sequence.request.id
        with self._lock:
            if self._death:
                raise _dead(self._death)
            if name in self._live:
                raise InvalidRequest(f"A request with the id {name} is under way. Choose another.")
            self._scheduler.check(sequence, coming=tuple(self._arrivals))
            self._live[name] = _Live(sequence, text)
            self._arrivals.append(sequence)
        self._wake.set()

    def cancel(self, name: str) -> None:
        """Have the next step end a request. Unknown ids are no error."""
        with self._lock:
            live = self._live.get(name)
            if live:
                self._cancelled.append(live.sequence)
        self._wake.set()

    def take(self) -> tuple[list[Sequence], list[Sequence]]:
        """What arrived, which the scheduler has from now on, and what is to be cancelled."""
        with self._lock:
            arrivals, self._arrivals = self._arrivals, []
            cancelled, self._cancelled = self._cancelled, []
            for sequence in arrivals:
                self._scheduler.add(sequence)
        return arrivals, cancelled

    def has(self, sequence: Sequence) -> bool:
        """Whether it has not ended."""
        live = self._live.get(sequence.request.id)
        return live is not None and live.sequence is sequence

    def emit(self, sequence: Sequence, token: int, logprob: TokenLogprob | None) -> Output:
        """Give a sequence its next token, which may be its last."""
        sampling, stream = sequence.request.sampling, self._live[sequence.request.id].text
        matcher = sequence.matcher
        if matcher and matcher.problem:  # the token was chosen without it
            return self.end(sequence, "error", error=_unfollowed(sequence, matcher.problem))
        if not sequence.max_tokens:
            return self.end(sequence, "length")
        sequence.append(token)
        if matcher:
            matcher.advance(token)
        ended = token in self._eos and not (sampling.ignore_eos and not matcher)
        text = "" if ended else stream.add(token)
        output = _output(sequence, (token,), text, (logprob,) if logprob else ())
        if ended or stream.stopped or (matcher and matcher.complete):
            return self.end(sequence, "stop", output)
        if sequence.completion_tokens == sequence.max_tokens:
            return self.end(sequence, "length", output)
        return output

    def overflow(self, sequence: Sequence) -> Output:
        """End a sequence whose logits are not finite."""
        whose = format_mix(sequence.mix) or "the base"
        text = f"Numbers in {whose} overflow at this prompt, and it gives no finite logits."
        return self.end(sequence, "error", error=NotFinite(f"{text} Lower its weight or its alpha."))

    def end(
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
        self._meter.ended(sequence, reason, error)
        timeline = sequence.timeline
        return replace(output, text=output.text + rest, finish_reason=reason, error=error, timeline=timeline)

    def fail(self, error: BaseException) -> list[Output]:
        """End all with `EngineDead`, and take no more."""
        with self._lock:
            self._death = error
            live, self._live = self._live, {}
        outputs = []
        for each in live.values():
            dead = _dead(error)
            self._meter.ended(each.sequence, "error", dead)
            outputs.append(replace(_output(each.sequence), finish_reason="error", error=dead))
        return outputs


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


def _dead(cause: BaseException) -> EngineDead:
    error = EngineDead(f"The engine stopped after {type(cause).__name__}: {cause}. Start it anew.")
    error.__cause__ = cause
    return error
