"""What is free on the nodes, when more will be, and what is held for whom."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
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
    planned = job.started_at + job.seconds
    return planned if planned > now else now + max(OVERRUN * ran, 1.0)


@dataclass(frozen=True, slots=True)
class Capacity:
    """What all nodes have together, free or not."""

    cpus: float
    gpus: float
    memory: float
    _rates: dict[Need, float] = field(default_factory=dict, init=False, compare=False, repr=False)

    def rate(self, need: Need) -> float:
        """How much of the cluster a need takes: its largest share of anything, in GPUs (CPUs where there are none)."""
        rate = self._rates.get(need)
        if rate is None:
            wanted = ((need.gpus, self.gpus), (need.cpus, self.cpus), (need.memory, self.memory))
            shares = (part / whole if whole > 0 else float(part > 0) for part, whole in wanted)
            rate = self._rates[need] = max(shares) * self.units
        return rate

    @property
    def units(self) -> float:
        """GPUs, or CPUs where there are none."""
        return self.gpus or self.cpus


class Free:
    """What is free on one node."""

    __slots__ = ("cpus", "gpu_memory", "gpus", "id", "largest", "memory", "whole")

    def __init__(
        self, node_id: str, cpus: float, gpus: Iterable[float], memory: float, gpu_memory: float = inf
    ) -> None:
        self.id, self.cpus, self.gpus, self.memory = node_id, cpus, list(gpus), memory
        self.gpu_memory = gpu_memory
        self._count()

    def copy(self) -> "Free":
        """The same, changed apart."""
        return Free(self.id, self.cpus, self.gpus, self.memory, self.gpu_memory)

    def devices(self, need: Need) -> tuple[int, ...] | None:
        """The GPUs that a job would get, that with the least left that suffices; None if it does not fit."""
        if need.cpus > self.cpus + SLACK or need.memory > self.memory + SLACK:
            return None
        if not need.gpus:
            return ()
        if need.gpu_memory > self.gpu_memory:
            return None
        if need.gpus < 1:
            share = need.gpus - SLACK
            if self.largest < share:
                return None
            return (min((free, number) for number, free in enumerate(self.gpus) if free >= share)[1],)
        if self.whole < need.gpus:
            return None
        return tuple(number for number, free in enumerate(self.gpus) if free >= 1 - SLACK)[: int(need.gpus)]

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
        self._count()

    def _count(self) -> None:
        self.largest = max(self.gpus, default=0.0)
        self.whole = sum([free >= 1 - SLACK for free in self.gpus]) if self.largest >= 1 - SLACK else 0

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
            node.id: Free(node.id, max(node.cpus, 0.0), node.gpus, max(node.memory, 0.0), node.gpu_memory)
            for node in sorted(nodes, key=lambda node: node.id)
        }
        self.holds: dict[str, Hold] = {}
        self.leaving: set[str] = set()
        """Jobs that are told to park by this decision."""
        self.on: dict[str, list[Active]] = {name: [] for name in self.nodes}
        here = [job for job in active if job.node in self.on]
        for job in here:
            self.on[job.node].append(job)
        self.capacity = Capacity(
            sum(node.cpus for node in self.nodes.values()) + sum(job.need.cpus for job in here),
            sum(len(node.gpus) for node in self.nodes.values()),
            sum(node.memory for node in self.nodes.values()) + sum(job.need.memory for job in here),
        )
        self._possible: dict[Need, bool] = {}
        self._fitting: dict[Need, dict[str, tuple[int, ...]]] = {}
        self._ends: list[tuple[float, str, Active]] | None = None
        self._seats: dict[str, dict[str, tuple[int, ...]]] = {}

    @cached_property
    def empty(self) -> list[Free]:
        """The nodes as they would be if nothing ran."""
        return [self._emptied(node) for node in self.nodes.values()]

    def _emptied(self, node: Free) -> Free:
        cpus = node.cpus + sum(job.need.cpus for job in self.on[node.id])
        memory = node.memory + sum(job.need.memory for job in self.on[node.id])
        return Free(node.id, cpus, [1.0] * len(node.gpus), memory, node.gpu_memory)

    def possible(self, need: Need) -> bool:
        """Whether some node, once empty, has room."""
        found = self._possible.get(need)
        if found is None:
            found = self._possible[need] = any(node.devices(need) is not None for node in self.empty)
        return found

    def fits(self, need: Need) -> bool:
        """Whether some node has room now, be it held."""
        return bool(self._where(need))

    def place(self, job: Waiting) -> str | None:
        """Put a job where it leaves the least useless, and say where; None if nowhere, or only if it delayed a hold."""
        found = [
            (self.nodes[name].left_over(job.need, devices), name, devices)
            for name, devices in self._where(job.need).items()
            if self._harmless(job, name, devices)
        ]
        if not found:
            return None
        _, name, devices = min(found)
        self._put(job, name, devices)
        if (hold := self.holds.get(name)) and not self._gone_by(job, hold):
            hold.then.take(job.need, devices)
        return name

    def _where(self, need: Need) -> dict[str, tuple[int, ...]]:
        """Nodes with room now, and the GPUs on them; found once, as within a decision room only shrinks."""
        found = self._fitting.get(need)
        if found is None:
            found = {}
            for name, node in self.nodes.items():
                if (devices := node.devices(need)) is not None:
                    found[name] = devices
            self._fitting[need] = found
        return found

    def put(self, job: Waiting, name: str) -> bool:
        """Put a job on the node that was kept for it; False if it does not fit."""
        devices = self.nodes[name].devices(job.need)
        if devices is not None:
            self._put(job, name, devices)
        return devices is not None

    def hold(self, job: Waiting) -> str | None:
        """Hold the node on which a job will fit first, unless all that it may get are held; gives its name."""
        at, name = self.soonest(job.need, [name for name in self.nodes if name not in self.holds])
        if name is not None:
            self.holds[name] = Hold(job, at, self._then(name, at))
        return name

    def release(self, job: Waiting) -> None:
        """Hold nothing for it any more."""
        self.holds = {name: hold for name, hold in self.holds.items() if hold.job.id != job.id}

    def open_to(self, job: Waiting, name: str) -> bool:
        """Whether a node is not held for another."""
        hold = self.holds.get(name)
        return hold is None or hold.job.id == job.id

    def soonest(self, need: Need, names: Iterable[str] | None = None) -> tuple[float, str | None]:
        """When some node, or one of those named, will have room, as far as it is known, and which; infinity if none."""
        nodes = self.nodes if names is None else {name: self.nodes[name] for name in names}
        for name in nodes:
            if nodes[name].devices(need) is not None:
                return self.now, name
        later: dict[str, Free] = {}
        for end, _, job in self.ends:
            if job.node not in nodes:
                continue
            node = later.get(job.node)
            if node is None:
                node = later[job.node] = nodes[job.node].copy()
            node.give(job.need, self.seats(job.node)[job.id])
            if node.devices(need) is not None:
                return end, job.node
        return inf, None

    def end(self, job: Active) -> float:
        """When a job is expected to be gone."""
        return self.now + PARKING if job.id in self.leaving else ends_at(job, self.now)

    def leave(self, job: Active) -> None:
        """A running job is told to park."""
        self.leaving.add(job.id)
        self._ends = None

    @property
    def ends(self) -> list[tuple[float, str, Active]]:
        """All jobs on the nodes with their ends and ids, those that end first in front."""
        if self._ends is None:
            self._ends = sorted((self.end(job), job.id, job) for jobs in self.on.values() for job in jobs)
        return self._ends

    def seats(self, name: str) -> dict[str, tuple[int, ...]]:
        """Which GPUs a node's jobs are on."""
        if name not in self._seats:
            self._seats[name] = seats(self.nodes[name], self.on[name])
        return self._seats[name]

    def _put(self, job: Waiting, name: str, devices: tuple[int, ...]) -> None:
        self.nodes[name].take(job.need, devices)
        begun = Active(job.id, job.tenant, job.need, job.priority, name, self.now, job.seconds, False, devices=devices)
        self.on[name].append(begun)
        self._ends = None
        self._seats.pop(name, None)
        for need, found in self._fitting.items():
            if found.pop(name, None) is not None and (left := self.nodes[name].devices(need)) is not None:
                found[name] = left

    def _then(self, name: str, at: float) -> Free:
        free = self.nodes[name].copy()
        for job in self.on[name]:
            if self.end(job) <= at:
                free.give(job.need, self.seats(name)[job.id])
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
    jobs = list(jobs)
    if all(job.devices or not job.need.gpus for job in jobs):
        return {job.id: job.devices for job in jobs}
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
