"""Waiting jobs, each tenant's in its order: higher priority first, then who came first, but urgent ones before all."""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heapreplace

from swapmeet.queue.records import Need, Waiting

LEAD = 3600.0
"""A job whose deadline would be missed if it did not start within so many seconds is urgent."""

Entry = tuple[int, float, str, Waiting]
"""A job behind what it is sorted by; ids differ, so that jobs themselves are never compared."""


def entry(job: Waiting) -> Entry:
    """A job with its place among those of its tenant."""
    return -job.priority, job.queued_at, job.id, job


def urgent(job: Waiting, now: float) -> bool:
    """Whether it can still meet its deadline, but not for long. One that is lost already must cost no other its own."""
    return job.deadline is not None and now <= job.deadline - job.seconds <= now + LEAD


class Line:
    """One tenant's waiting jobs: those of the same need in one sorted list. `first` is the first of all."""

    __slots__ = ("by_need", "dated", "first")

    def __init__(self) -> None:
        self.by_need: dict[Need, list[Entry]] = {}
        self.dated: dict[str, Waiting] = {}
        self.first: Entry | None = None

    def add(self, new: Entry) -> None:
        """One more."""
        job = new[3]
        insort(self.by_need.setdefault(job.need, []), new)
        if job.deadline is not None:
            self.dated[job.id] = job
        if self.first is None or new < self.first:
            self.first = new

    def remove(self, old: Entry) -> None:
        """One that is in it less."""
        job = old[3]
        entries = self.by_need[job.need]
        del entries[bisect_left(entries, old)]
        if not entries:
            del self.by_need[job.need]
        self.dated.pop(job.id, None)
        if old == self.first:
            self.first = min((entries[0] for entries in self.by_need.values()), default=None)


class Backlog:
    """All waiting jobs. Who keeps one between decisions is spared sorting tens of thousands of jobs for each."""

    def __init__(self, jobs: Iterable[Waiting] = ()) -> None:
        self.lines: dict[str, Line] = {}
        self.needs: Counter[Need] = Counter()
        """How many jobs need what."""
        self._jobs: dict[str, Waiting] = {}
        for job in jobs:
            self.add(job)

    def add(self, job: Waiting) -> None:
        """A job that waits from now on; what was known under its id is forgotten."""
        if job.id in self._jobs:
            self.remove(job.id)
        self._jobs[job.id] = job
        self.needs[job.need] += 1
        self.lines.setdefault(job.tenant, Line()).add(entry(job))

    def remove(self, job_id: str) -> None:
        """A job that no longer waits.

        Raises:
            KeyError: it did not.
        """
        job = self._jobs.pop(job_id)
        self.needs[job.need] -= 1
        if not self.needs[job.need]:
            del self.needs[job.need]
        line = self.lines[job.tenant]
        line.remove(entry(job))
        if line.first is None:
            del self.lines[job.tenant]

    def get(self, job_id: str) -> Waiting | None:
        """The job, if it waits."""
        return self._jobs.get(job_id)

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._jobs.values())


class Cursor:
    """Goes through a line in its order: `job`, then `advance` past it or `drop` all that need the same."""

    __slots__ = ("_dropped", "_early", "_heap", "_urgent")

    def __init__(self, line: Line, now: float) -> None:
        soon = [job for job in line.dated.values() if urgent(job, now)] if line.dated else []
        soon.sort(key=lambda job: (job.deadline, job.id), reverse=True)
        self._urgent = soon
        self._early = {job.id for job in soon}
        self._heap = [(entries[0], 0, entries) for entries in line.by_need.values()]
        self._dropped: set[Need] = set()
        heapify(self._heap)

    @property
    def job(self) -> Waiting | None:
        """The next one."""
        while self._urgent and self._urgent[-1].need in self._dropped:
            self._urgent.pop()
        if self._urgent:
            return self._urgent[-1]
        while self._heap:
            job = self._heap[0][0][3]
            if job.need in self._dropped:
                heappop(self._heap)
            elif job.id in self._early:
                self._pass()
            else:
                return job
        return None

    def advance(self) -> None:
        """Past the present one."""
        if self._urgent:
            self._urgent.pop()
        else:
            self._pass()

    def drop(self, need: Need) -> None:
        """Nothing more that needs just this."""
        self._dropped.add(need)

    def _pass(self) -> None:
        _, index, entries = self._heap[0]
        if index + 1 < len(entries):
            heapreplace(self._heap, (entries[index + 1], index + 1, entries))
        else:
            heappop(self._heap)
