"""From a job to the order that an attempt at it is started with."""

from collections.abc import Sequence

from swapmeet.database.tables import FileRow, JobRow
from swapmeet.settings import Settings
from swapmeet_training.attempts.telling import DataFile, Order
from swapmeet_training.spec import Resources


def order_of(settings: Settings, row: JobRow, files: Sequence[FileRow | None]) -> Order:
    """The order for a job's present attempt.

    Args:
        settings: where storage, registry and bases are.
        row: the job, which has an attempt and a node.
        files: its training file, and its validation file where it has one.
    """
    data = [DataFile(f"files/{file.id}", file.filename, file.sha256) for file in files if file is not None]
    assert data, "files of unfinished jobs stay"
    assert row.node is not None
    return Order(
        job=row.id,
        attempt=row.attempt,
        adapter=row.adapter,
        base=row.base,
        settings=row.settings,
        data=data[0],
        validation=data[1] if len(data) > 1 else None,
        parent=row.parent,
        resources=resources_of(row),
        memory=int(row.resources.get("memory", 0)),
        node=row.node,
        home=settings.folder,
        storage=settings.storage_url,
        registry=settings.registry_url,
        trust=settings.trust,
        checkpoint=row.checkpoint,
        step=row.step,
    )


def resources_of(row: JobRow) -> Resources:
    """What a job's run gets of its node."""
    return Resources(cpus=float(row.resources.get("cpus", 1)), gpus=float(row.resources.get("gpus", 0)))
