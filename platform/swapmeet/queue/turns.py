"""Whose turn it is, and what quotas allow.

A tenant's turn comes the sooner, the less it used lately and holds now, by its weight: weighted fair share of the
resource that it takes most of (Dominant Resource Fairness, Ghodsi et al., NSDI 2011), with a memory that fades.
"""

from collections.abc import Iterable, Mapping
from heapq import heapify, heappop, heappush

from swapmeet.queue.backlog import Backlog, Cursor
from swapmeet.queue.ends import GUESS, ends_at
from swapmeet.queue.free import Capacity
from swapmeet.queue.records import Active, Share, Waiting

HALF_LIFE = 6 * 3600.0
"""What was used so many seconds ago counts half: a night's work is forgiven by the next evening."""
HORIZON = 3600.0
"""What a tenant holds counts as if it had used it for so many seconds already, so that it does not take all at once."""
QUANTUM = 600.0
"""With GPU-seconds for less than this left, and less than it needs, a job does not start: it would hardly get going."""


def decayed(amounts: Iterable[tuple[float, float]], now: float) -> float:
    """What amounts, each with the moment of its use, still count: `Share.used`."""
    return sum(amount * float(0.5 ** (max(now - at, 0.0) / HALF_LIFE)) for at, amount in amounts)


class Standing:
    """What a tenant has, and may still have."""

    __slots__ = ("gpu_seconds", "held", "runs", "share", "tenant")

    def __init__(self, tenant: str, share: Share) -> None:
        self.tenant, self.share = tenant, share
        self.runs = 0
        self.held = 0.0
        """Units of the cluster, see `Capacity.rate`."""
        self.gpu_seconds = share.gpu_seconds_left
        """What no running job is expected to use."""

    @property
    def weight(self) -> float:
        """Of its share."""
        return self.share.weight

    @property
    def turn(self) -> float:
        """The lower, the sooner."""
        return (self.share.used + HORIZON * self.held) / self.share.weight

    @property
    def full(self) -> bool:
        """Whether it could run another job just if it ran one less."""
        return self.runs > 0 and self.runs == self.share.concurrent_runs

    @property
    def over(self) -> bool:
        """Whether it runs more than it may, counting what is promised to it."""
        return self.share.concurrent_runs is not None and self.runs > self.share.concurrent_runs

    @property
    def spent(self) -> bool:
        """Whether it has no GPU-seconds left at all."""
        return self.share.gpu_seconds_left is not None and self.share.gpu_seconds_left <= 0

    def begin(self, rate: float, gpu_seconds: float) -> None:
        """It runs one more."""
        self.runs += 1
        self.held += rate
        if self.gpu_seconds is not None:
            self.gpu_seconds -= gpu_seconds

    def refuses(self, job: Waiting) -> str | None:
        """Why its quotas forbid that one of its jobs starts now, or None."""
        most = self.share.concurrent_runs
        if most is not None and self.runs >= most:
            if most <= 0:
                return f"{self.tenant} may run no jobs"
            return f"{self.tenant} runs {self.runs} jobs, of at most {most} at once"
        if self.gpu_seconds is not None and self.gpu_seconds < job.need.gpus * min(job.seconds or QUANTUM, QUANTUM):
            return f"{self.tenant} has used up its GPU-seconds, or will have with what it runs"
        return None


class Turns:
    """Tenants with waiting jobs, in turn. `standings` are those of all tenants that wait or run."""

    def __init__(
        self,
        backlog: Backlog,
        active: Iterable[Active],
        shares: Mapping[str, Share],
        capacity: Capacity,
        now: float,
    ) -> None:
        self._backlog, self._shares, self._capacity, self._now = backlog, shares, capacity, now
        self.standings: dict[str, Standing] = {}
        for job in active:
            standing = self.standings.get(job.tenant) or self.standing(job.tenant)
            limited = standing.gpu_seconds is not None
            standing.begin(capacity.rate(job.need), job.need.gpus * (ends_at(job, now) - now) if limited else 0.0)
        self._cursors: dict[str, Cursor] = {}
        self._heap: list[tuple[float, int, float, str]] = []

    def standing(self, tenant: str) -> Standing:
        """A tenant's; one that has no share has the usual one."""
        found = self.standings.get(tenant)
        if found is None:
            found = self.standings[tenant] = Standing(tenant, self._shares.get(tenant) or Share())
        return found

    def rewind(self) -> None:
        """Begin with each tenant's first job."""
        self._cursors = {}
        self._heap = [self._place(tenant) for tenant in self._backlog.lines]
        heapify(self._heap)

    def next(self) -> tuple[Standing, Cursor, Waiting] | None:
        """Whose turn it is, and its next job, on which one of the following has the last word."""
        while self._heap:
            tenant = heappop(self._heap)[-1]
            cursor = self._cursors.get(tenant)
            if cursor is None:
                cursor = self._cursors[tenant] = Cursor(self._backlog.lines[tenant], self._now)
            if job := cursor.job:
                return self.standing(tenant), cursor, job
        return None

    def again(self, tenant: str) -> None:
        """It may have another turn."""
        heappush(self._heap, self._place(tenant))

    def begin(self, standing: Standing, job: Waiting) -> None:
        """Charge a tenant with a job that starts."""
        standing.begin(self._capacity.rate(job.need), job.need.gpus * (job.seconds or GUESS))

    def entitled(self, standing: Standing) -> bool:
        """Whether it holds no more than its part of the cluster among all who wait or run."""
        weights = sum(self.standing(tenant).weight for tenant in {*self.standings, *self._backlog.lines})
        return standing.held <= self._capacity.units * standing.weight / weights

    def end(self, standing: Standing, job: Active) -> None:
        """Credit a tenant with the room of a job that is told to park; it runs until it is gone."""
        standing.held -= self._capacity.rate(job.need)

    def _place(self, tenant: str) -> tuple[float, int, float, str]:
        first = self._backlog.lines[tenant].first
        assert first
        return self.standing(tenant).turn, first[0], first[1], tenant
