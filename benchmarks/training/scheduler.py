"""The queue's policy against first come, first served: a simulated cluster, and as many jobs as many tenants submit.

    python benchmarks/training/scheduler.py [--tenants 1000] [--jobs 100000] [--gpus 500] [--load 1.1] [--seed 0]

Simulated is all but the decisions. Tenants are of very different size (Zipf), submit in bursts (sweeps), more by day
than by night; lengths are log-normal with a heavy tail, and estimates of them are wrong by a third; two jobs in five
take a part of a GPU and one in ten several. FIFO starts the oldest job as soon as it fits somewhere, and no other
before. Both decide every thirty simulated seconds in which something changed.

decisions/s     calls of the policy a second of this process's time, and the jobs that they started
Jain            Jain's index over tenants of what each held, on average over the time in which it wanted anything, as a
                part of its max-min fair share of that time (all equal: 1; one of n has all: 1/n)
wait            seconds between submission and end in which a job did not run; "small" tenants are the half that
                submitted least, "big" ones the tenth that submitted most, by GPU-seconds
utilisation     of all GPUs, between a tenth of the time to the last submission and that
"""

import argparse
import heapq
import json
import math
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from swapmeet.queue.free import Capacity, Free
from swapmeet.queue.policy import Active, Backlog, Decision, Need, Node, Promise, Share, Start, Waiting, decide
from swapmeet.queue.room import Room
from swapmeet.queue.turns import HALF_LIFE

DAY = 86_400.0
TICK = 30.0
PARKED_IN = 20.0
"""Seconds until a job that was told to park is gone."""
LOST = 60.0
"""Seconds that going on from a checkpoint costs."""
SHARES_EVERY = 600.0
"""Simulated seconds between two looks at what tenants used."""
SAMPLES_EVERY = 600.0
AT_ONCE = 50_000
"""Jobs that a single decision is timed with."""
SHAPES = (
    (0.25, Need(1, 0.25, 8e9)),
    (0.15, Need(2, 0.5, 16e9)),
    (0.50, Need(4, 1, 32e9)),
    (0.05, Need(8, 2, 64e9)),
    (0.03, Need(16, 4, 128e9)),
    (0.02, Need(32, 8, 256e9)),
)


@dataclass(slots=True)
class Job:
    """A job as nobody knows it beforehand."""

    id: str
    tenant: str
    need: Need
    priority: int
    at: float
    length: float
    estimate: float
    left: float = 0.0
    ended: float = 0.0
    parks: int = 0


def main() -> None:
    """Simulate both, print a table, end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--gpus", type=int, default=500)
    parser.add_argument("--load", type=float, default=1.1, help="GPU-seconds submitted for each that there is")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    nodes = cluster(options.gpus)
    figures = {}
    for name, policy in (("fair share", fair_share()), ("FIFO", first_come())):
        jobs = workload(options)
        figures[name] = Simulation(jobs, nodes, policy).run()
    at_once = one_decision(workload(options)[:AT_ONCE], nodes)
    report(figures, at_once, options)


def cluster(gpus: int) -> list[Node]:
    """Nodes of eight GPUs, and one with the rest."""
    sizes = [8] * (gpus // 8) + ([gpus % 8] if gpus % 8 else [])
    return [Node(f"node-{number:03}", 8.0 * size, (1.0,) * size, 64e9 * size) for number, size in enumerate(sizes)]


def workload(options: argparse.Namespace) -> list[Job]:
    """Jobs by the time of their submission."""
    dice = random.Random(options.seed)
    weights = [1 / (rank + 1) for rank in range(options.tenants)]
    chances, shapes = zip(*SHAPES, strict=True)
    drawn: list[tuple[str, Need, int, float, float]] = []
    bursts: list[int] = []
    while len(drawn) < options.jobs:
        tenant = f"tenant-{dice.choices(range(options.tenants), weights)[0]:04}"
        burst = min(int(dice.paretovariate(1.1)), 200, options.jobs - len(drawn))
        shape, typical = dice.choices(shapes, chances)[0], 900 * math.exp(dice.gauss(0, 1.2))
        for _ in range(burst):
            length = min(max(typical * math.exp(dice.gauss(0, 0.5)), 30.0), 2 * DAY)
            priority = dice.choices((0, 1, 2), (90, 8, 2))[0]
            drawn.append((tenant, shape, priority, length, length * math.exp(dice.gauss(0, 0.33))))
            bursts.append(len(drawn) if not bursts or burst == 1 else bursts[-1])
    work = sum(min(need.gpus, 8) * length for _, need, _, length, _ in drawn)
    span = work / options.gpus / options.load
    moments: dict[int, float] = {}
    jobs = []
    for number, ((tenant, need, priority, length, estimate), burst) in enumerate(zip(drawn, bursts, strict=True)):
        at = moments.setdefault(burst, submitted_at(dice, span)) + dice.uniform(0, 30)
        jobs.append(Job(f"job-{number:06}", tenant, need, priority, at, length, estimate, length))
    return sorted(jobs, key=lambda job: (job.at, job.id))


def submitted_at(dice: random.Random, span: float) -> float:
    """A moment, three times as likely at noon as at midnight."""
    while True:
        at = dice.uniform(0, span)
        if dice.uniform(0, 1) < (2 - math.cos(2 * math.pi * at / DAY)) / 3:
            return at


Policy = Callable[["Simulation"], Decision]


def fair_share() -> Policy:
    """What the scheduler does, with a backlog that it keeps and the promises of its last decision."""
    promises: dict[str, Promise] = {}

    def choose(now: "Simulation") -> Decision:
        nonlocal promises
        active, nodes = list(now.active.values()), list(now.nodes.values())
        decision = decide(now.backlog, active, nodes, now.shares(), now.time, promises, explain=False)
        promises = decision.promises
        return decision

    return choose


def first_come() -> Policy:
    """FIFO: the oldest job, when it fits somewhere."""
    line: deque[Waiting] = deque()

    def choose(now: "Simulation") -> Decision:
        line.extend(now.arrived)
        room = Room(list(now.nodes.values()), (), now.time)
        starts = []
        while line and (node := room.place(line[0])):
            starts.append(Start(line.popleft().id, node))
        return Decision(starts)

    return choose


@dataclass
class Simulation:
    """A cluster over time."""

    jobs: list[Job]
    empty: Sequence[Node]
    policy: Policy
    time: float = 0.0
    backlog: Backlog = field(default_factory=Backlog)
    active: dict[str, Active] = field(default_factory=dict)
    arrived: list[Waiting] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.by_id = {job.id: job for job in self.jobs}
        self.nodes = {node.id: node for node in self.empty}
        self.capacity = Capacity(
            sum(node.cpus for node in self.empty),
            sum(len(node.gpus) for node in self.empty),
            sum(node.memory for node in self.empty),
        )
        self.rates = {need: self.capacity.rate(need) for _, need in SHAPES}
        tenants = sorted({job.tenant for job in self.jobs})
        self.used = dict.fromkeys(tenants, 0.0)
        self._shares = {tenant: Share() for tenant in tenants}
        self._charged: dict[str, float] = {}
        self._looked_at = 0.0
        self._ends: list[tuple[float, str, float]] = []
        self.fairness = Fairness(tenants)
        self.took: list[float] = []
        self.started = 0

    def run(self) -> dict[str, float]:
        """Until the last job has ended."""
        arrivals = deque(self.jobs)
        last, sampled = self.jobs[-1].at, 0.0
        while arrivals or self.active or len(self.backlog):
            upcoming = min(arrivals[0].at if arrivals else math.inf, self._ends[0][0] if self._ends else math.inf)
            self.time = max(math.ceil(upcoming / TICK) * TICK, self.time)
            while self._ends and self._ends[0][0] <= self.time:
                self._end(*heapq.heappop(self._ends))
            self.arrived = []
            while arrivals and arrivals[0].at <= self.time:
                self._queue(arrivals.popleft())
            self._decide()
            if self.time >= sampled + SAMPLES_EVERY and self.time <= last:
                self.fairness.sample(self, self.time - sampled)
                sampled = self.time
        return self.figures()

    def shares(self) -> dict[str, Share]:
        """What all used, looked at now and then."""
        if self.time >= self._looked_at + SHARES_EVERY:
            fade = 0.5 ** ((self.time - self._looked_at) / HALF_LIFE)
            for job in self.active.values():
                self._charge(job)
            for tenant in self.used:
                self.used[tenant] *= fade
                self._shares[tenant] = Share(used=self.used[tenant])
            self._looked_at = self.time
        return self._shares

    def _charge(self, job: Active) -> None:
        since = self._charged.get(job.id, job.started_at)
        self.used[job.tenant] += (self.time - since) * self.rates[job.need]
        self._charged[job.id] = self.time

    def _queue(self, job: Job) -> None:
        estimate = job.estimate * job.left / job.length
        waiting = Waiting(job.id, job.tenant, job.need, job.priority, job.at, None, estimate)
        self.arrived.append(waiting)
        self.backlog.add(waiting)

    def _decide(self) -> None:
        began = time.process_time()
        decision = self.policy(self)
        self.took.append(time.process_time() - began)
        for start in decision.starts:
            self._start(self.by_id[start.job], start.node)
        for name in decision.preempts:
            running = self.active[name]
            if not running.parking:
                self.active[name] = replace(running, parking=True)
                heapq.heappush(self._ends, (self.time + PARKED_IN, name, running.started_at))

    def _start(self, job: Job, name: str) -> None:
        node = self.nodes[name]
        free = Free(name, node.cpus, node.gpus, node.memory)
        devices = free.devices(job.need)
        assert devices is not None, f"{job.id} does not fit on {name}"
        free.take(job.need, devices)
        self.nodes[name] = Node(name, free.cpus, tuple(free.gpus), free.memory)
        waited = self.backlog.get(job.id)
        assert waited
        self.backlog.remove(job.id)
        self.active[job.id] = Active(
            job.id, job.tenant, job.need, job.priority, name, self.time, waited.seconds, True, devices=devices
        )
        heapq.heappush(self._ends, (self.time + job.left, job.id, self.time))
        self.started += 1

    def _end(self, at: float, name: str, began: float) -> None:
        running = self.active.get(name)
        if running is None or running.started_at != began:
            return  # it parked before, or ended before it was parked
        del self.active[name]
        self._charge(running)
        del self._charged[name]
        node = self.nodes[running.node]
        free = Free(node.id, node.cpus, node.gpus, node.memory)
        free.give(running.need, running.devices)
        self.nodes[node.id] = Node(node.id, free.cpus, tuple(free.gpus), free.memory)
        job = self.by_id[name]
        self.fairness.ran(running, at, self.rates[job.need])
        job.left -= at - running.started_at
        if job.left > 1e-6:
            job.parks += 1
            job.left = min(job.left + LOST, job.length)
            self._queue(job)
        else:
            job.ended = at

    def figures(self) -> dict[str, float]:
        """What came of it."""
        waits = {job.id: job.ended - job.at - job.length for job in self.jobs}
        sizes = dict.fromkeys(self.used, 0.0)
        for job in self.jobs:
            sizes[job.tenant] += job.length * self.rates[job.need]
        ordered = sorted(sizes, key=lambda tenant: (sizes[tenant], tenant))
        small, big = set(ordered[: len(ordered) // 2]), set(ordered[-(len(ordered) // 10) :])
        of_small = [waits[job.id] for job in self.jobs if job.tenant in small]
        of_big = [waits[job.id] for job in self.jobs if job.tenant in big]
        of_8 = [waits[job.id] for job in self.jobs if job.need.gpus == 8]
        spent, last = sum(self.took), self.jobs[-1].at
        return {
            "decisions": len(self.took),
            "decisions_per_second": len(self.took) / spent,
            "starts_per_second": self.started / spent,
            "decision_ms_p99": percentile(self.took, 99) * 1000,
            "jain": self.fairness.jain(),
            "small_wait_p50": percentile(of_small, 50),
            "small_wait_p99": percentile(of_small, 99),
            "big_wait_p50": percentile(of_big, 50),
            "big_wait_p99": percentile(of_big, 99),
            "eight_gpus_wait_p99": percentile(of_8, 99),
            "utilisation": self.fairness.busy(last / 10, last) / (0.9 * last) / self.capacity.units,
            "parked": sum(job.parks for job in self.jobs),
            "hours": self.time / 3600,
        }


class Fairness:
    """What tenants held, and what would have been fair, added up while they wanted anything."""

    def __init__(self, tenants: Sequence[str]) -> None:
        self._held = dict.fromkeys(tenants, 0.0)
        self._fair = dict.fromkeys(tenants, 0.0)
        self._runs: list[tuple[float, float, float]] = []

    def ran(self, job: Active, until: float, rate: float) -> None:
        """So long on so many GPUs."""
        self._runs.append((job.started_at, until, min(job.need.gpus, rate)))

    def busy(self, since: float, until: float) -> float:
        """GPU-seconds within a time."""
        return sum(max(min(end, until) - max(begin, since), 0.0) * units for begin, end, units in self._runs)

    def sample(self, now: Simulation, seconds: float) -> None:
        """Count the present for so many seconds."""
        held: dict[str, float] = {}
        for job in now.active.values():
            held[job.tenant] = held.get(job.tenant, 0.0) + now.rates[job.need]
        wanted = dict(held)
        for tenant, line in now.backlog.lines.items():
            more = sum(len(entries) * now.rates[need] for need, entries in line.by_need.items())
            wanted[tenant] = wanted.get(tenant, 0.0) + more
        for tenant, fair in max_min(wanted, now.capacity.units).items():
            self._held[tenant] += held.get(tenant, 0.0) * seconds
            self._fair[tenant] += fair * seconds

    def jain(self) -> float:
        """The index over all who wanted anything."""
        parts = [self._held[tenant] / fair for tenant, fair in self._fair.items() if fair]
        return sum(parts) ** 2 / (len(parts) * sum(part * part for part in parts))


def max_min(wanted: dict[str, float], units: float) -> dict[str, float]:
    """Everybody gets what it wants, or as much as any other."""
    fair = {}
    for number, (amount, tenant) in enumerate(sorted((amount, tenant) for tenant, amount in wanted.items())):
        fair[tenant] = min(amount, units / (len(wanted) - number))
        units -= fair[tenant]
    return fair


def one_decision(jobs: Sequence[Job], nodes: Sequence[Node]) -> float:
    """Milliseconds for a decision over many jobs that nobody sorted before, with a word for each that waits."""
    waiting = [Waiting(job.id, job.tenant, job.need, job.priority, job.at, None, job.estimate) for job in jobs]
    began = time.process_time()
    decide(waiting, (), nodes, {}, jobs[-1].at)
    return (time.process_time() - began) * 1000


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-percent * len(ordered) // 100) - 1)] if ordered else 0.0


def report(figures: dict[str, dict[str, float]], at_once: float, options: argparse.Namespace) -> None:
    """A table for people and one line for programs."""
    print(f"{'':24}" + "".join(f"{name:>12}" for name in figures))
    for key in next(iter(figures.values())):
        print(f"{key.replace('_', ' '):24}" + "".join(f"{each[key]:12.5g}" for each in figures.values()))
    print(f"a decision over {min(AT_ONCE, options.jobs):,} unsorted jobs, each told why it waits: {at_once:.0f} ms")
    shown = {name: {key: float(f"{value:.4g}") for key, value in each.items()} for name, each in figures.items()}
    print(json.dumps({"benchmark": "scheduler", **vars(options), "one_decision_ms": round(at_once), **shown}))


if __name__ == "__main__":
    main()
