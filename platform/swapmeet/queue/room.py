"""What is free on the nodes, when more will be, and what is held for whom."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

from swapmeet.queue.records import SLACK, Active, Need, Node, Waiting

PARKING = 30.0
"""Seconds until a job that was told to park has written its checkpoint and is gone, about."""
GUESS = 600.0
"""Seconds that a job of unknown length is taken to last still, at least."""
OVERRUN = 0.1
"""A job that outlasts its estimate is taken to last this part of its length longer."""


def ends_at(job: Active, now: float) -> float:
    """When it is expected to end: later than now."""
    if job.parking:
        return now + PARKING
    ran = max(now - job.started_at, 0.0)
    if job.seconds <= 0:
        return now + max(ran, GUESS)
    return max(job.started_at + job.seconds, now + max(OVERRUN * ran, 1.0))


@dataclass(frozen=True, slots=True)
class Capacity:
    """What all nodes have together, free or not."""

    cpus: float
    gpus: float
    memory: float

    def rate(self, need: Need) -> float:
        """How much of the cluster a need takes: its largest share of anything, in GPUs (CPUs where there are none)."""
        wanted = ((need.gpus, self.gpus), (need.cpus, self.cpus), (need.memory, self.memory))
        return max(part / whole if whole > 0 else float(part > 0) for part, whole in wanted) * self.units

    @property
    def units(self) -> float:
        """GPUs, or CPUs where there are none."""
        return self.gpus or self.cpus


class Free:
    """What is free on one node."""

    __slots__ = ("cpus", "gpus", "id", "memory")

    def __init__(self, node_id: str, cpus: float, gpus: Iterable[float], memory: float) -> None:
        self.id, self.cpus, self.gpus, self.memory = node_id, cpus, list(gpus), memory

    def copy(self) -> "Free":
        """The same, changed apart."""
        return Free(self.id, self.cpus, self.gpus, self.memory)

    def devices(self, need: Need) -> tuple[int, ...] | None:
        """The GPUs that a job would get, those with the least left that suffice first; None if it does not fit."""
        if need.cpus > self.cpus + SLACK or need.memory > self.memory + SLACK:
            return None
        if not need.gpus:
            return ()
        share = min(need.gpus, 1.0) - SLACK
        enough = [number for number, free in enumerate(self.gpus) if free >= share]
        count = int(max(need.gpus, 1.0))
        if len(enough) < count:
            return None
        return (min(enough, key=self.gpus.__getitem__),) if count == 1 else tuple(enough[:count])

    def take(self, need: Need, devices: Iterable[int]) -> None:
        """Less, by what a job takes."""
        self._change(need, devices, -1)

    def give(self, need: Need, devices: Iterable[int]) -> None:
        """More, by what a job took."""
        self._change(need, devices, 1)

    def _change(self, need: Need, devices: Iterable[int], sign: int) -> None:
        self.cpus += sign * need.cpus
        self.memory += sign * need.memory
        for number in devices:
            self.gpus[number] += sign * min(need.gpus, 1.0)

    def left_over(self, need: Need, devices: tuple[int, ...]) -> tuple[float, ...]:
        """How badly a job would sit here: what it leaves useless. The node with the least of all is the best."""
        if need.gpus and need.gpus < 1:
            return self.gpus[devices[0]], sum(self.gpus), self.cpus
        return sum(self.gpus), self.cpus


@dataclass(slots=True)
class Hold:
    """A node that is held for a job that will fit there `at` a moment, when `then` is free."""

    job: Waiting
    at: float
    then: Free


class Room:
    """The nodes, as a decision fills them. Jobs on nodes that are not there hold no room."""

    def __init__(self, nodes: Sequence[Node], active: Iterable[Active], now: float) -> None:
        self.now = now
        self.nodes = {
            node.id: Free(node.id, max(node.cpus, 0.0), node.gpus, max(node.memory, 0.0))
            for node in sorted(nodes, key=lambda node: node.id)
        }
        self.holds: dict[str, Hold] = {}
        self.leaving: set[str] = set()
        """Jobs that are told to park by this decision."""
        self.on: dict[str, list[Active]] = {name: [] for name in self.nodes}
        for job in active:
            if job.node in self.on:
                self.on[job.node].append(job)
        self._ends: dict[str, list[tuple[float, Active, tuple[int, ...]]]] = {}
        self.empty = [self._emptied(node) for node in self.nodes.values()]
        self.capacity = Capacity(
            sum(node.cpus for node in self.empty),
            sum(len(node.gpus) for node in self.empty),
            sum(node.memory for node in self.empty),
        )

    def _emptied(self, node: Free) -> Free:
        jobs = self.on[node.id]
        cpus, memory = node.cpus, node.memory
        for job in jobs:
            cpus += job.need.cpus
            memory += job.need.memory
        return Free(node.id, cpus, [1.0] * len(node.gpus), memory)

    def possible(self, need: Need) -> bool:
        """Whether some node, once empty, has room."""
        return any(node.devices(need) is not None for node in self.empty)

    def fits(self, need: Need) -> bool:
        """Whether some node has room now, be it held."""
        return any(node.devices(need) is not None for node in self.nodes.values())

    def place(self, job: Waiting) -> str | None:
        """Put a job where it leaves the least useless, and say where; None if nowhere, or only if it delayed a hold."""
        found = [
            (node.left_over(job.need, devices), name, devices)
            for name, node in self.nodes.items()
            if (devices := node.devices(job.need)) is not None and self._harmless(job, name, devices)
        ]
        if not found:
            return None
        _, name, devices = min(found)
        self._put(job, name, devices)
        if (hold := self.holds.get(name)) and not self._gone_by(job, hold):
            hold.then.take(job.need, devices)
        return name

    def put(self, job: Waiting, name: str) -> bool:
        """Put a job on the node that was kept for it; False if it does not fit."""
        devices = self.nodes[name].devices(job.need)
        if devices is not None:
            self._put(job, name, devices)
        return devices is not None

    def hold(self, job: Waiting) -> None:
        """Hold the node on which a job will fit first, unless all that it may get are held."""
        free = [name for name in self.nodes if name not in self.holds]
        found = [(at, name) for name in free if (at := self.expected(job.need, name)) < inf]
        if found:
            at, name = min(found)
            self.holds[name] = Hold(job, at, self._then(name, at))

    def release(self, job: Waiting) -> None:
        """Hold nothing for it any more."""
        self.holds = {name: hold for name, hold in self.holds.items() if hold.job.id != job.id}

    def open_to(self, job: Waiting, name: str) -> bool:
        """Whether a node is not held for another."""
        hold = self.holds.get(name)
        return hold is None or hold.job.id == job.id

    def soonest(self, job: Waiting) -> float:
        """When a job will find room, if nobody came before it."""
        return min((self.expected(job.need, name) for name in self.nodes if self.open_to(job, name)), default=inf)

    def expected(self, need: Need, name: str) -> float:
        """When a node will have room, as far as it is known; infinity if never."""
        free = self.nodes[name].copy()
        if free.devices(need) is not None:
            return self.now
        for end, job, devices in self.ends(name):
            free.give(job.need, devices)
            if free.devices(need) is not None:
                return end
        return inf

    def end(self, job: Active) -> float:
        """When a job is expected to be gone."""
        return self.now + PARKING if job.id in self.leaving else ends_at(job, self.now)

    def leave(self, job: Active) -> None:
        """A running job is told to park."""
        self.leaving.add(job.id)
        self._ends.pop(job.node, None)

    def ends(self, name: str) -> list[tuple[float, Active, tuple[int, ...]]]:
        """A node's running jobs with their GPUs, those that end first in front."""
        if name not in self._ends:
            devices = seats(self.nodes[name], self.on[name])
            ends = [(self.end(job), job, devices[job.id]) for job in self.on[name]]
            self._ends[name] = sorted(ends, key=lambda end: (end[0], end[1].id))
        return self._ends[name]

    def _put(self, job: Waiting, name: str, devices: tuple[int, ...]) -> None:
        self.nodes[name].take(job.need, devices)
        begun = Active(job.id, job.tenant, job.need, job.priority, name, self.now, job.seconds, False, devices=devices)
        self.on[name].append(begun)
        self._ends.pop(name, None)

    def _then(self, name: str, at: float) -> Free:
        free = self.nodes[name].copy()
        for end, job, devices in self.ends(name):
            if end <= at:
                free.give(job.need, devices)
        return free

    def _gone_by(self, job: Waiting, hold: Hold) -> bool:
        return 0 < job.seconds <= hold.at - self.now

    def _harmless(self, job: Waiting, name: str, devices: tuple[int, ...]) -> bool:
        """Whether whom the node is held for would still fit there in time."""
        hold = self.holds.get(name)
        if hold is None or hold.job.id == job.id or self._gone_by(job, hold):
            return True
        then = hold.then.copy()
        then.take(job.need, devices)
        return then.devices(hold.job.need) is not None


def seats(node: Free, jobs: Iterable[Active]) -> dict[str, tuple[int, ...]]:
    """Which GPUs each job is on: as it is told, else the largest job first where it fills most of what is taken."""
    taken = [1.0 - free for free in node.gpus]
    found: dict[str, tuple[int, ...]] = {}
    for job in sorted(jobs, key=lambda job: (not job.devices, -job.need.gpus, job.id)):
        share, count = min(job.need.gpus, 1.0), int(max(job.need.gpus, 1.0)) if job.need.gpus else 0
        fitting = sorted((left < share - SLACK, left, number) for number, left in enumerate(taken))
        devices = job.devices or tuple(number for _, _, number in fitting[:count])
        found[job.id] = devices = tuple(number for number in devices if number < len(taken))
        for number in devices:
            taken[number] -= share
    return found
