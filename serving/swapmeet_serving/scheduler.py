"""What the next step computes: who is let in, who goes on, and who has to step back for a while."""

import heapq
from collections import defaultdict, deque
from collections.abc import Container, Iterator
from math import ceil
from typing import Protocol, cast

from swapmeet_serving.adapters import Readiness
from swapmeet_serving.errors import ContextTooLong, Overloaded, TooManyRequests
from swapmeet_serving.fair_share import FairShare
from swapmeet_serving.kv_pages import KvPages
from swapmeet_serving.mix import Mix
from swapmeet_serving.sequence import Sequence, Slice

TENANTS_PART = 0.75
"""How much of the queue one tenant may fill, so that there is room for another's request."""
_Root = tuple[str, Mix]
"""Whose prefixes they are, a tenant's alone, and what computed them."""


def most_of_one_tenant(max_queue: int) -> int:
    """How many of one tenant's sequences may wait in a queue of so many."""
    return max(1, ceil(max_queue * TENANTS_PART))


class AdapterResidency(Protocol):
    """What admission needs to know of adapters."""

    def check(self, identities: tuple[str, ...]) -> None:
        """Raise what is known to keep these adapters from being in memory together, ever or for now."""
        ...

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

    A sequence is admitted once its adapters are in memory, where they are pinned, and there are pages for the tokens
    it has. As it grows it takes more; where none is left, whoever was admitted last gives its own back, waits, and is
    computed anew later, mostly out of the prefix cache. So the one admitted first always goes on, and one alone always
    fits: nothing can wait for ever.

    Tenants take turns by what they were served. Within a tenant later arrivals pass only those who wait for a load:
    whoever waits for pages or a place stops admission, and whoever waits for adapter room stops admission of adapters
    until those running let go. Adapters that earlier ones wait for are not evicted.

    Attributes:
        room: how many tokens one sequence can have in all.
        whole: prompts are computed in one piece, with pages for all tokens to come and none of another sequence.
        refused: what `schedule` found impossible, and why.
        preemptions: how often a sequence had to step back.
        prefix_hits: how many sequences found the start of their prompt in the cache.
        prefix_hit_tokens: how many tokens they found there.
    """

    def __init__(
        self,
        pages: KvPages,
        adapters: AdapterResidency,
        *,
        context_length: int,
        max_batch: int,
        max_queue: int,
        max_step_tokens: int,
        whole: bool = False,
    ) -> None:
        self._pages = pages
        self._adapters = adapters
        self.room = min(context_length, pages.count * pages.page_size)
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._max_step_tokens = max(max_step_tokens, max_batch + pages.page_size)
        self.whole = whole
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.refused: list[tuple[Sequence, Exception]] = []
        self.preemptions = self.prefix_hits = self.prefix_hit_tokens = 0
        self._fair = FairShare()

    def check(self, sequence: Sequence, coming: tuple[Sequence, ...] = ()) -> None:
        """Refuse what can never run, or what would lengthen a queue that is full with those coming.

        Raises:
            ContextTooLong: prompt and max_tokens exceed the context or the KV cache.
            Overloaded: too many requests wait already.
            TooManyRequests: too many of the same tenant's.
        """
        if sequence.most_tokens > self.room:
            raise ContextTooLong(
                f"The prompt has {len(sequence.request.prompt)} tokens and max_tokens is {sequence.max_tokens}, "
                f"together more than the {self.room} that fit. Shorten the prompt or lower max_tokens."
            )
        queue = (*self.waiting, *coming)
        if len(queue) >= self._max_queue:
            raise Overloaded(f"{self._max_queue} requests are waiting already. Try again later.")
        tenant = sequence.request.tenant
        own = sum(other.request.tenant == tenant for other in queue)
        if own >= most_of_one_tenant(self._max_queue):
            raise TooManyRequests(f"{own} of your requests are waiting already. Try again when some are answered.")

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)
        self._fair.arrive(sequence.request.tenant)

    def schedule(self) -> list[Slice]:
        """Admit what fits and give the step's slices, single tokens first, those of one mix side by side."""
        for sequence in tuple(self.running):
            self._grow(sequence)
        slices: list[Slice] = []
        budget = self._max_step_tokens
        for sequence in sorted(self.running, key=_prefills):
            budget -= self._take(sequence, budget, slices)
        for sequence in self._admitted():
            if budget > 0 and self._start(sequence):
                budget -= self._take(sequence, budget, slices)
        return sorted(slices, key=lambda each: (each.count > 1, each.sequence.mix))

    def computed(self, slices: list[Slice]) -> None:
        """A step's slices are in the cache now."""
        for piece in slices:
            sequence = piece.sequence
            sequence.cached += piece.count
            if not sequence.missing:
                self._fair.charge(sequence.request.tenant, 1, output=True, share=sequence.request.share)
            if not self.whole:
                self._share(sequence)

    def remove(self, sequence: Sequence, *, spoilt: bool = False) -> None:
        """Let a sequence go that ended or was cancelled, with its pages and its pins.

        What is `spoilt` is found by nobody: NaN of a token reaches earlier ones computed beside it, whose keys and
        values would be taken for those of a prompt that begins alike and goes on well.
        """
        if spoilt:
            self._pages.forget(sequence.pages)
        self._fair.leave(sequence.request.tenant)
        if sequence in self.running:
            self._stop(sequence)
        else:
            self.waiting.remove(sequence)
            for identity in sequence.adapters:
                if all(identity not in other.adapters for other in self.waiting):
                    self._adapters.forget(identity)

    def using(self, identity: str) -> list[Sequence]:
        """All sequences that an adapter has a part in."""
        return [each for each in (*self.waiting, *self.running) if identity in each.adapters]

    def forget_prefixes(self, identity: str) -> None:
        """Find nothing again that an adapter had a part in."""
        self._pages.forget_below(lambda root: identity in dict(cast(_Root, root)[1]))

    def _take(self, sequence: Sequence, budget: int, slices: list[Slice]) -> int:
        tokens = sequence.missing if self.whole else min(sequence.missing, budget)
        if tokens > 0:
            slices.append(Slice(sequence, tokens))
        return tokens

    def _admitted(self) -> Iterator[Sequence]:
        """Waiting sequences that may start now, in turn; the adapters of all that wait are moved on meanwhile."""
        self.refused = []
        full = adapters_full = False
        earlier: set[str] = set()
        for sequence in self._by_turn():
            ready = self._prepare(sequence, earlier)
            adapters_full |= ready is Readiness.NO_ROOM
            if ready is Readiness.READY and not full and not (adapters_full and sequence.mix):
                yield sequence
                full = sequence in self.waiting

    def _by_turn(self) -> Iterator[Sequence]:
        """All that wait, the tenant served least first, as it stands whenever the next one is asked for."""
        queues: defaultdict[str, deque[Sequence]] = defaultdict(deque)
        for sequence in self.waiting:
            queues[sequence.request.tenant].append(sequence)
        turns = [(self._fair.served(tenant), place, tenant) for place, tenant in enumerate(queues)]
        heapq.heapify(turns)
        while turns:
            _, place, tenant = turns[0]
            yield queues[tenant].popleft()
            if queues[tenant]:
                heapq.heapreplace(turns, (self._fair.served(tenant), place, tenant))
            else:
                heapq.heappop(turns)

    def _prepare(self, sequence: Sequence, earlier: set[str]) -> Readiness:
        earlier.update(sequence.adapters)
        try:
            self._adapters.check(sequence.adapters)
        except Exception as error:  # whatever kept them from being loaded
            self.refused.append((sequence, error))
            return Readiness.LOADING
        found = [self._adapters.prepare(identity, keep=earlier) for identity in sequence.adapters]
        return max(found, default=Readiness.READY, key=lambda each: each.value)

    def _start(self, sequence: Sequence) -> bool:
        """Give a waiting sequence its pages, leaving one to each that runs, and pin its adapters."""
        if len(self.running) >= self._max_batch:
            return False
        root: _Root = (sequence.request.tenant, sequence.mix)
        # The last token is always computed, because what follows it is asked for.
        alone = self.whole or sequence.wants_prompt_logits
        shared, node = ([], root) if alone else self._pages.find(root, sequence.tokens[:-1])
        wanted = sequence.most_tokens if self.whole else len(sequence.tokens)
        pages = self._pages.pages_for(wanted) - len(shared)
        spare = 0 if self.whole else len(self.running)
        taken = self._pages.allocate(pages) if pages + spare <= self._pages.free else None
        if taken is None:
            self._pages.release(shared)
            return False
        sequence.pages, sequence.prefix, sequence.shared = shared + taken, node, len(shared)
        sequence.cached = len(shared) * self._pages.page_size
        if sequence.cached_prompt is None:
            sequence.cached_prompt = sequence.cached
            self.prefix_hits += sequence.cached > 0
            self.prefix_hit_tokens += sequence.cached
            self._fair.charge(sequence.request.tenant, sequence.missing, output=False, share=sequence.request.share)
        for identity in sequence.adapters:
            self._adapters.pin(identity)
        self.waiting.remove(sequence)
        self.running.append(sequence)
        return True

    def _grow(self, sequence: Sequence) -> None:
        """Have pages for all tokens of a running sequence, from those admitted later if need be."""
        while sequence in self.running:
            missing = self._pages.pages_for(len(sequence.tokens)) - len(sequence.pages)
            taken = self._pages.allocate(max(0, missing))
            if taken is not None:
                sequence.pages += taken
                return
            self._preempt(self.running[-1])

    def _preempt(self, sequence: Sequence) -> None:
        self._stop(sequence)
        sequence.cached = sequence.shared = 0
        self.waiting.insert(0, sequence)  # before those of its tenant that came later
        self.preemptions += 1

    def _stop(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._pages.release(sequence.pages)
        sequence.pages = []
        for identity in sequence.adapters:
            self._adapters.unpin(identity)

    def _share(self, sequence: Sequence) -> None:
        """Have what is in full pages found by others."""
        size = self._pages.page_size
        while (sequence.shared + 1) * size <= sequence.cached:
            begin = sequence.shared * size
            page = sequence.pages[sequence.shared]
            sequence.prefix = self._pages.keep(sequence.prefix, sequence.tokens[begin : begin + size], page)
            sequence.shared += 1


def _prefills(sequence: Sequence) -> bool:
    return sequence.missing > 1
