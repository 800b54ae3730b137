"""What a node has free and what all have together, and which GPUs of a node a job is on."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf

from swapmeet.queue.records import SLACK, Active, Need


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
