"""The process that answers one question about a job."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from swapmeet_registry import RegistryError, StoreError, open_store
from swapmeet_registry.bases import BaseLibrary
from swapmeet_training import TrainingError
from swapmeet_training.attempts.apart import Line
from swapmeet_training.attempts.run_storage import fetch_object
from swapmeet_training.attempts.scratch import SCRATCH, scratch_folder
from swapmeet_training.errors import DeviceMissing, OutOfMemory, StorageFull
from swapmeet_training.plan import (
    Hardware,
    Plan,
    Planned,
    cpu,
    fitting,
    gpu_called,
    of_accelerator,
    own_hardware,
    planned_job,
)


def answer_alone(line: Line, asked: Mapping[str, Any]) -> None:
    """Answer the question, as a process that does nothing else; whoever answers requests goes first."""
    os.nice(10)
    with scratch_folder(Path(asked["home"]) / SCRATCH, f"plan-{uuid4().hex}") as scratch:
        line.say(answer(asked, scratch))


def answer(asked: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    """The plan, or the code and the message of what keeps it, and whether that is the run's own fault.

    Raises:
        StoreError, StorageFull: the storage can not be read now, or there is no room here: it may be tried again.
    """
    try:
        return {"plan": _plan(asked, scratch).as_dict()}
    except (StoreError, StorageFull):
        raise
    except (TrainingError, RegistryError) as error:
        own = isinstance(error, TrainingError) and not isinstance(error, DeviceMissing)
        return {"code": error.code, "message": str(error), "own": own}


def _plan(asked: Mapping[str, Any], scratch: Path) -> Plan:
    hardware = _hardware(asked)
    base = BaseLibrary(Path(asked["home"])).find(asked["base"])
    data, validation = (_file(asked, name, scratch) for name in ("data", "validation"))
    assert data is not None
    run = planned_job(base.path, asked["settings"], data, validation, hardware[0])
    if asked["parent"]:
        run = run.having(parent=Path(asked["parent"]))
    return smallest(run, hardware, asked["share"])


def smallest(run: Planned, hardware: Sequence[Hardware], share: float) -> Plan:
    """The plan for the first that a run fits into.

    Raises:
        OutOfMemory: it fits into none; the message is about the last.
    """
    *others, last = hardware
    for each in others:
        try:
            return fitting(replace(run, hardware=each), share=share)
        except OutOfMemory:
            continue
    return fitting(replace(run, hardware=last), share=share)


def _hardware(asked: Mapping[str, Any]) -> list[Hardware]:
    """What the places are, the least memory first.

    Raises:
        DeviceMissing: a run there can not be planned, because nobody knows what GPUs these are.
    """
    known = [found for place in asked["places"] if (found := _at(**place)) is not None]
    if not known:
        kinds = ", ".join(place["gpu"] or "no name" for place in asked["places"])
        raise DeviceMissing(f"The cluster's GPUs ({kinds}) are of no kind that is known here.")
    return sorted((replace(each, price=asked["price"]) for each in known), key=lambda each: each.memory)


def _at(gpu: str | None, cpus: float, memory: int, here: bool) -> Hardware | None:
    if gpu is None:
        return own_hardware(0, cpus) if here else cpu(memory, cpus)
    if here:
        try:
            return own_hardware(1, cpus)
        except DeviceMissing:  # Ray was told of GPUs that the driver does not show
            pass
    return gpu_called(gpu, memory) if memory else of_accelerator(gpu)


def _file(asked: Mapping[str, Any], name: str, scratch: Path) -> Path | None:
    if (file := asked[name]) is None:
        return None
    path = scratch / (name + Path(file["filename"]).suffix.lower())
    fetch_object(open_store(asked["storage"], used=True), file["key"], path, file["sha256"])
    return path
