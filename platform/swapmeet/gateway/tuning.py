"""What the routes of files, uploads and jobs stand on."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Protocol

from anyio import CapacityLimiter
from fastapi import Depends, Request
from sqlalchemy import select

from swapmeet.adapter_access import AdapterAccess
from swapmeet.database import Database
from swapmeet.database.tables import CheckpointRow, EventRow, JobRow
from swapmeet.files import Files, Sweeper, Uploads, Validator
from swapmeet.fine_tuning import JobRequests, Models
from swapmeet.gateway.authority import Caller, may
from swapmeet.jobs.ending import Announce, announce_nothing
from swapmeet.jobs.states import State
from swapmeet.planning import Planner
from swapmeet.queue.dispatcher import Machine, RayDispatcher
from swapmeet.queue.placing import lent
from swapmeet.settings import Settings
from swapmeet.sweeps.sweeps import Sweeps
from swapmeet_registry import Registry
from swapmeet_registry.bases import BaseLibrary
from swapmeet_registry.stores import Store, open_store

FILE_THREADS = 4
"""So many files are written or read through at once; routes that only look something up never wait for them."""
JOINING_THREADS = 2
"""So many uploads, of up to 8 GB each, are completed at once; other files need not wait for them."""

PLANS = 2
"""So many plans are made at once, each in a process; of sweeps, which need many in turn, as many are under way."""


class Jobs(Protocol):
    """The queue's book of jobs. Another tenant's are as if they did not exist, and each call may be repeated."""

    def create(self, row: JobRow, by: Caller | None, /) -> JobRow:
        """Take a job, or give the one that the same request made within ten minutes."""

    def get(self, tenant: str | None, job: str, /) -> JobRow:
        """A job."""

    def page(
        self, tenant: str | None, after: str | None, limit: int, metadata: Mapping[str, str] | None, /
    ) -> tuple[Sequence[JobRow], bool]:
        """Jobs, newest first, and whether there are more."""

    def cancel(self, tenant: str | None, job: str, by: Caller | None, /) -> JobRow:
        """End a job."""

    def pause(self, tenant: str | None, job: str, by: Caller | None, /) -> JobRow:
        """Have a job wait until it is resumed."""

    def resume(self, tenant: str | None, job: str, by: Caller | None, /) -> JobRow:
        """Let a paused job go on."""

    def events(self, tenant: str | None, job: str, after: str | None, limit: int, /) -> tuple[Sequence[EventRow], bool]:
        """What happened to a job, newest first, and whether there is more."""

    def checkpoints(
        self, tenant: str | None, job: str, after: str | None, limit: int, /
    ) -> tuple[Sequence[CheckpointRow], bool]:
        """A job's checkpoints, newest first, and whether there are more."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """Files, uploads, what checks them, jobs, sweeps, what plans them, who may train on what, and a spool.

    `machines` are the cluster's, with the GPUs that jobs may have; `store` has what their attempts leave.
    """

    store: Store
    files: Files
    uploads: Uploads
    validator: Validator
    jobs: Jobs
    sweeps: Sweeps
    requests: JobRequests
    planner: Planner
    access: AdapterAccess
    machines: Callable[[], Sequence[Machine]]
    spool: Path
    threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(FILE_THREADS))
    plans: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(PLANS))
    sweep_plans: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(PLANS))
    joining: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(JOINING_THREADS))


def build_tuning(
    settings: Settings, database: Database, registry: Registry, jobs: Jobs, announce: Announce = announce_nothing
) -> Tuning:
    """All of it for a platform with these settings; nothing runs in the background yet."""
    spool = settings.folder / "cache" / "uploads"
    library = BaseLibrary(settings.folder)
    store = open_store(settings.storage_url)
    files = Files(database, store)
    hosted = set() if "/" in settings.base else {settings.base}  # a folder has its name among the records
    models = Models(registry, lambda: hosted | {record.name for record in library.records()})
    cluster, running = RayDispatcher(settings.storage_url), select(JobRow).where(JobRow.state == State.RUNNING)
    return Tuning(
        store=store,
        files=files,
        uploads=Uploads(files, spool),
        validator=Validator(files, spool),
        jobs=jobs,
        sweeps=Sweeps(database, announce),
        requests=JobRequests(files, models, settings),
        planner=Planner(settings),
        access=AdapterAccess(registry, database),
        machines=lambda: lent(cluster.machines(), database.read(lambda session: list(session.scalars(running)))),
        spool=spool,
    )


@contextmanager
def tended(tuning: Tuning) -> Iterator[None]:
    """Within the block, files are checked that nobody checked, and swept up when they are over."""
    stop = threading.Event()
    loops = (tuning.validator.serve, "validation"), (Sweeper(tuning.uploads).serve, "sweeper")
    threads = [threading.Thread(target=serve, args=(stop,), name=name, daemon=True) for serve, name in loops]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        tuning.validator.close()
        tuning.planner.close()
        for thread in threads:
            thread.join()


async def tuning(request: Request) -> Tuning:
    """The app's, as a FastAPI dependency."""
    found = request.app.state.tuning
    assert isinstance(found, Tuning)
    return found


Backend = Annotated[Tuning, Depends(tuning)]
Reader = Annotated[Caller, Depends(may("read"))]
Trainer = Annotated[Caller, Depends(may("train"))]
