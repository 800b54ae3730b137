"""What a decision is made from, and what it says. Times are seconds since the epoch, lengths seconds, sizes bytes."""

from dataclasses import dataclass, field
from math import inf

SLACK = 1e-6
"""Shares of GPUs are sums of fractions; so much is taken for nothing."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a job takes of one node: `gpus` below 1 is a share of one, from 1 on whole ones; `memory` is main memory.

    `gpu_memory` is what a whole one of its GPUs must have at least, where the nodes' differ.
    """

    cpus: float
    gpus: float
    memory: float
    gpu_memory: float = 0.0

    def __post_init__(self) -> None:
        if min(self.cpus, self.gpus, self.memory) < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise ValueError(f"A job needs a share of one GPU or whole GPUs, and nothing below 0: not {self}.")


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that may run. `seconds` is what it will still take, by estimate (0: unknown)."""

    id: str
    tenant: str
    need: Need
    priority: int
    queued_at: float
    deadline: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Active:
    """A job that holds its room on a node. `seconds` is what it takes from `started_at` on, by estimate (0: unknown).

    `started_at` is that of the present attempt. A job that is `parking` was told to stop and soon will have.
    `devices` are the numbers of the GPUs that it is on; where they are not told, they are guessed from what is free.
    """

    id: str
    tenant: str
    need: Need
    priority: int
    node: str
    started_at: float
    seconds: float
    preemptible: bool
    parking: bool = False
    devices: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is there: its free CPUs, the free share of each of its GPUs (0 to 1), its free main memory.

    `gpu_memory` is what each of its GPUs has, free or not.
    """

    id: str
    cpus: float
    gpus: tuple[float, ...]
    memory: float
    gpu_memory: float = inf


@dataclass(frozen=True, slots=True)
class Share:
    """A tenant: its weight, what it used lately, and its limits, of which None is none.

    `used` is in GPU-seconds, or CPU-seconds where there are no GPUs, each worth less the longer it is ago
    (`turns.decayed`); what running jobs used so far is part of it. `gpu_seconds_left` likewise counts what they used.
    """

    weight: float = 1.0
    used: float = 0.0
    concurrent_runs: int | None = None
    gpu_seconds_left: float | None = None

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"A tenant's weight must be above 0, not {self.weight}. To keep it out, allow it 0 runs.")


@dataclass(frozen=True, slots=True)
class Start:
    """A job to start now, and on which node."""

    job: str
    node: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a job waits, in words, and about how many seconds still; None where nobody can tell."""

    reason: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Promise:
    """A node on which a waiting job will start once others are gone, of which some may have been told to park."""

    node: str
    parked: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now: jobs to start, jobs to park, and why all others wait.

    Parked jobs still hold their room; those that they make way for start in a later decision, which is told the
    `promises` of this one. `because` says in words why each is parked.
    """

    starts: list[Start] = field(default_factory=list)
    preempts: list[str] = field(default_factory=list)
    waits: dict[str, Wait] = field(default_factory=dict)
    because: dict[str, str] = field(default_factory=dict)
    promises: dict[str, Promise] = field(default_factory=dict)
