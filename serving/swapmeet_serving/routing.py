"""Which replica a call goes to: where its adapters are, unless it is much busier there than elsewhere.

Consistent hashing with bounded loads, after Mirrokni, Thorup and Zadimoghaddam (2016), with adapters in memory taken
into account. A cold adapter has one home, the same for all routers, so that one replica loads it and not all. A hot
one overflows to the next replica in its own order as soon as the replicas that hold it carry more than their share,
and no earlier: each replica more costs a load.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil

LIGHT = 4
"""So many requests slow each other so little that they are no reason to load an adapter a second time."""
SLACK = 1.25
"""How many times the mean load a replica may carry before calls for its adapters overflow."""
REPORTS = 2
"""After so many reports, what was sent before the first of them is in the last for certain."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica as a router sees it.

    Attributes:
        name: the same in all routers.
        load: requests it runs or has waiting.
        adapters: those in memory or on their way there.
        full: requests wait there for KV pages.
    """

    name: str
    load: int
    adapters: frozenset[str] = frozenset()
    full: bool = False


def rank(adapters: Sequence[str], candidates: Sequence[Candidate]) -> list[str]:
    """The candidates' names, best first; `adapters` are those the call needs, none for the bare base."""
    needed = frozenset(adapters)
    total = sum(each.load for each in candidates)
    bound = max(LIGHT, ceil(SLACK * (total + 1) / max(1, len(candidates))))

    def preference(each: Candidate) -> tuple[object, ...]:
        over = each.load >= bound or each.full
        if over or not adapters:
            return over, each.load, each.name
        missing = len(needed - each.adapters)
        cold = missing == len(needed)
        return over, missing, 0 if cold else each.load, _weight(needed, each.name)

    return [each.name for each in sorted(candidates, key=preference)]


def _weight(adapters: frozenset[str], name: str) -> bytes:
    """Rendezvous hashing: of all replicas, the one with the least weight is the adapters' home."""
    return hashlib.blake2b("\0".join((*sorted(adapters), name)).encode(), digest_size=8).digest()


@dataclass(slots=True)
class Replica:
    """What one router knows of one replica: its last report, and what was sent there since."""

    name: str
    report: int = 0
    reported: int = 0
    full: bool = False
    _adapters: frozenset[str] = frozenset()
    _coming: dict[str, int] = field(default_factory=dict)

    def take(self, report: "Report") -> None:
        """Take in a report; one seen before changes nothing."""
        if report.number == self.report:
            return
        self.report, self.reported, self.full = report.number, report.load, report.full
        self._adapters = frozenset(report.adapters)
        self._coming = {name: left - 1 for name, left in self._coming.items() if left > 1}

    def send(self, adapters: Iterable[str]) -> None:
        """A call with these adapters goes there: they will be in memory soon, though no report says so yet."""
        self._coming |= dict.fromkeys(adapters, REPORTS)

    def candidate(self, counted: int | None, unsent: int) -> Candidate:
        """What to decide by; `counted` are requests there where the router knows, `unsent` those about to go."""
        load = unsent + (self.reported if counted is None else counted)
        return Candidate(self.name, load, self._adapters | self._coming.keys(), self.full)


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica tells routers about itself, every second or so.

    Attributes:
        number: counts up with each report, from 1.
        adapters: identities of those in memory or on their way there.
        running: requests in the batch.
        waiting: requests that are not.
        free_pages: of the KV cache.
        steps_per_second: since the last report.
    """

    number: int
    adapters: tuple[str, ...] = ()
    running: int = 0
    waiting: int = 0
    free_pages: int = 0
    steps_per_second: float = 0.0

    @property
    def load(self) -> int:
        """Requests under way."""
        return self.running + self.waiting

    @property
    def full(self) -> bool:
        """Whether requests wait for pages."""
        return self.waiting > 0 and self.free_pages == 0
