"""Which sequences the next step computes: admission in order of arrival, never more than fits."""

from collections.abc import Container
from typing import Protocol

from swapmeet_serving.adapters import Readiness
from swapmeet_serving.errors import ContextTooLong, Overloaded
from swapmeet_serving.kv_pages import KvPages
from swapmeet_serving.sequence import Sequence


class AdapterResidency(Protocol):
    """What admission needs to know of adapters."""

    def prepare(self, identity: str, keep: Container[str] = ()) -> Readiness:
        """Move an adapter towards memory and say how far it is."""
        ...

    def pin(self, identity: str) -> None:
        """Keep an adapter in memory."""
        ...

    def unpin(self, identity: str) -> None:
        """Take one pin back."""
        ...

    def forget(self, identity: str) -> None:
        """Nobody waits for an adapter any more."""
        ...


class Scheduler:
    """Holds the waiting and the running sequences.

    A sequence is admitted with pages for all tokens it can ever have and with its adapter pinned, so what
    runs can always finish. Nobody starves, because later arrivals pass only those who wait for a load:
    whoever waits for pages or a place stops admission, and whoever waits for adapter room stops admission
    of adapters until those running let go. Adapters that earlier arrivals wait for are not evicted.

    `room` is how many tokens one sequence can have in all.
    """

    def __init__(
        self,
        pages: KvPages,
        adapters: AdapterResidency,
        *,
        context_length: int,
        max_batch: int,
        max_queue: int,
        max_prefill_tokens: int,
    ) -> None:
        self._pages = pages
        self._adapters = adapters
        self.room = min(context_length, pages.count * pages.page_size)
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._max_prefill_tokens = max_prefill_tokens
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []

    @property
    def free_pages(self) -> int:
        """KV pages that nobody holds."""
        return self._pages.free

    def check(self, sequence: Sequence, coming: int = 0) -> None:
        """Refuse what can never run, or what would lengthen a queue that is full with those coming.

        Raises:
            ContextTooLong: prompt and max_tokens exceed the context or the KV cache.
            Overloaded: too many requests wait already.
        """
        if sequence.most_tokens > self.room:
            raise ContextTooLong(
                f"The prompt has {len(sequence.request.prompt)} tokens and max_tokens is {sequence.max_tokens}, "
                f"together more than the {self.room} that fit. Shorten the prompt or lower max_tokens."
            )
        if len(self.waiting) + coming >= self._max_queue:
            raise Overloaded(f"{self._max_queue} requests are waiting already. Try again later.")

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def schedule(self) -> list[Sequence]:
        """Admit what fits and give the step's sequences, those of one adapter side by side.

        Sequences that decode come first, so that their single rows are together.
        """
        self._admit()
        return sorted(self.running, key=lambda each: (not each.decoding, each.adapter or ""))

    def remove(self, sequence: Sequence) -> None:
        """Let a sequence go that ended or was cancelled, with its pages and its pin."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._pages.release(sequence.pages)
            sequence.pages.clear()
            if sequence.adapter:
                self._adapters.unpin(sequence.adapter)
        else:
            self.waiting.remove(sequence)
            if sequence.adapter and all(other.adapter != sequence.adapter for other in self.waiting):
                self._adapters.forget(sequence.adapter)

    def _admit(self) -> None:
        prefill = 0
        open_to_any = open_to_adapters = True
        earlier: set[str] = set()
        for sequence in tuple(self.waiting):
            ready = self._prepare(sequence, earlier)
            if ready is Readiness.NO_ROOM:
                open_to_adapters = False
            welcome = open_to_any and (open_to_adapters or not sequence.adapter)
            if ready is Readiness.READY and welcome:
                prefill += len(sequence.tokens)
                alone = prefill == len(sequence.tokens)
                open_to_any = (alone or prefill <= self._max_prefill_tokens) and self._start(sequence)

    def _prepare(self, sequence: Sequence, earlier: set[str]) -> Readiness:
        if not sequence.adapter:
            return Readiness.READY
        ready = self._adapters.prepare(sequence.adapter, keep=earlier)
        earlier.add(sequence.adapter)
        return ready

    def _start(self, sequence: Sequence) -> bool:
        if len(self.running) >= self._max_batch:
            return False
        pages = self._pages.allocate(self._pages.pages_for(sequence.most_tokens))
        if pages is None:
            return False
        sequence.pages = pages
        if sequence.adapter:
            self._adapters.pin(sequence.adapter)
        self.waiting.remove(sequence)
        self.running.append(sequence)
        return True
