"""The nodes as a decision fills them: what is free, when more will be, and what is held for whom."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf

from swapmeet.queue.ends import PARKING, ends_at
from swapmeet.queue.free import Capacity, Free, seats
from swapmeet.queue.records import Active, Need, Node, Waiting


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
