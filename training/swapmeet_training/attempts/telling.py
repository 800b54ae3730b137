"""What an attempt at a run is started with, and what it tells of itself. All of it travels between processes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swapmeet_registry.signing import OFF, Trust
from swapmeet_training.progress import Progress
from swapmeet_training.spec import Resources


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file to train on, in the storage: its key, the name it was uploaded under, its hex SHA-256."""

    key: str
    filename: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Order:
    """One attempt at a job's run.

    Attributes:
        job: the job's id.
        attempt: counts the job's attempts, from 1.
        adapter: `TENANT/NAME` that is trained.
        base: a name that the base library knows or can fetch.
        settings: of `FineTune`, without names, paths and fingerprints.
        data: what to train on.
        validation: what to measure on, if anything.
        parent: `TENANT/NAME@sha256:HEX` of the adapter to go on from.
        resources: what the run gets of its node.
        memory: bytes of main memory to reserve; 0: none.
        node: Ray's id of the node.
        home: the platform's folder on every node, for bases and scratch files.
        storage: the URL that files and checkpoints are kept under.
        registry: the URL of the registry that `parent` is in.
        checkpoint: the newest one that an earlier attempt told of.
        step: up to where progress was told already.
        patience: seconds that the storage may be away before the attempt is given up.
        trust: whose signatures `parent` must bear.
    """

    job: str
    attempt: int
    adapter: str
    base: str
    settings: Mapping[str, Any]
    data: DataFile
    validation: DataFile | None
    parent: str | None
    resources: Resources
    memory: int
    node: str
    home: Path
    storage: str
    registry: str
    checkpoint: str | None = None
    step: int = 0
    patience: float = 600.0
    trust: Trust = OFF


def namespace(storage: str) -> str:
    """Where in a cluster the attempts of one platform have their names; what platforms never share is the storage."""
    return f"swapmeet-{hashlib.sha256(storage.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Began:
    """The worker is up, and goes on from `checkpoint`, if there is one."""

    checkpoint: str | None


@dataclass(frozen=True, slots=True)
class Ready:
    """The first step of the attempt is done; `moments` are when the parts until then were, in order.

    In seconds since the epoch, by the clock of the worker's machine: `process` (it is there and knows what to do),
    `files` (the order's files were fetched), `data` (they are tokens), `base` (it is in memory), `adapter`, `step`.
    """

    moments: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Stepped:
    """A step, or an evaluation, is done."""

    progress: Progress


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint is whole in the storage, with what was measured there; `best` is the best of all so far."""

    checkpoint: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    best: str | None = None


@dataclass(frozen=True, slots=True)
class Noted:
    """Something to tell the owner; `name` says which such event of the job it is."""

    name: str
    message: str
    level: str = "info"


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is done, and its adapter whole in the storage.

    `tokens_per_second` is as in `Progress`; `peak_memory` is what tensors took at most, in bytes, where torch tells.
    """

    adapter: str
    metrics: Mapping[str, float]
    steps: int
    trained_tokens: int
    tokens_per_second: float = 0.0
    peak_memory: int | None = None


@dataclass(frozen=True, slots=True)
class Stopped:
    """The run was asked to stop, and has, at a step's boundary; `checkpoint` was told of before."""

    checkpoint: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt ended by an error; where it is the job's `own` fault, another attempt would end the same."""

    code: str
    message: str
    own: bool


Telling = Began | Ready | Stepped | Saved | Noted | Finished | Stopped | Failed
Last = Finished | Stopped | Failed
"""What nothing follows."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an attempt answers when it is polled: what it told, numbered from 1."""

    attempt: int
    told: tuple[tuple[int, Telling], ...]
