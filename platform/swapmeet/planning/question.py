"""A question about a run, in plain values that travel to another process, and the answers to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swapmeet.database.tables import FileRow, JobRow
from swapmeet.queue.dispatcher import Machine
from swapmeet_training.attempts.telling import DataFile


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run may be put: the GPUs of a kind, or the CPUs of a machine.

    Attributes:
        gpu: as its driver calls it, or the kind in Ray's words, empty where Ray knows none; None for CPUs.
        cpus: that the run gets.
        memory: bytes: of a GPU, 0 where its driver was not heard; on CPUs, of main memory that a run may take.
        here: whether it is this machine, which can be asked for what it has.
    """

    gpu: str | None
    cpus: float
    memory: int
    here: bool


@dataclass(frozen=True, slots=True)
class Question:
    """What a job will need.

    Attributes:
        base: a name that the base library knows or can fetch.
        parent: `TENANT/NAME@sha256:HEX` of the adapter that it goes on from.
        settings: of `FineTune`, without names, paths and fingerprints.
        data, validation: its files in the storage.
        places: where it may be put; it is planned for the smallest that it fits into.
        share: of a GPU, that it may take.
    """

    base: str
    parent: str | None
    settings: Mapping[str, Any]
    data: DataFile
    validation: DataFile | None
    places: tuple[Place, ...]
    share: float


@dataclass(frozen=True, slots=True)
class Made:
    """A plan, as `swapmeet_training.plan.Plan.as_dict` gives it, and how long it took to make, in seconds."""

    plan: Mapping[str, Any]
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no plan. If it is the run's `own` fault, the run would end by the same error."""

    code: str
    message: str
    own: bool


Answer = Made | Refusal


def question_of(row: JobRow, training: FileRow, validation: FileRow | None, found: tuple[Place, ...]) -> Question:
    """The question about a job with checked files."""
    return Question(
        base=row.base,
        parent=row.parent,
        settings={name: value for name, value in row.settings.items() if value is not None},
        data=_data(training),
        validation=None if validation is None else _data(validation),
        places=found,
        share=float(row.resources.get("gpus") or 1.0),
    )


def places(resources: Mapping[str, Any], machines: Sequence[Machine], *, embedded: bool) -> tuple[Place, ...]:
    """Where a run may be put: on GPUs where it asks for them, or names none and there are some, and else on CPUs.

    Args:
        resources: that are asked for.
        machines: the cluster's, with the GPUs that jobs may have.
        embedded: whether the cluster is this machine.
    """
    cpus, wanted = float(resources.get("cpus", 1)), resources.get("gpus")
    with_gpus = [machine for machine in machines if machine.gpus >= 1]
    if wanted or (wanted is None and with_gpus):
        kinds = dict.fromkeys((machine.accelerator or "", machine.gpu_memory or 0) for machine in with_gpus)
        return tuple(Place(kind, cpus, memory, embedded) for kind, memory in kinds)
    memory, most = resources.get("memory"), most_memory(machines, cpus)
    return (Place(None, cpus, int(memory or most), embedded and not memory),) if machines else ()


def most_memory(machines: Sequence[Machine], cpus: float) -> float:
    """Main memory that a run with so many CPUs may have: that of the largest machine which has so many, if any has."""
    able = [machine for machine in machines if machine.cpus >= cpus] or machines
    return max((machine.memory for machine in able), default=0.0)


def _data(file: FileRow) -> DataFile:
    return DataFile(f"files/{file.id}", file.filename, file.sha256)
