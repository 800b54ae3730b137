"""What the routes of files, uploads and jobs stand on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Protocol

from anyio import CapacityLimiter
from fastapi import Depends, Request

from swapmeet.database.tables import CheckpointRow, EventRow, JobRow
from swapmeet.files import Files, Uploads, Validator
from swapmeet.fine_tuning import JobRequests
from swapmeet.gateway.authority import Caller, may

FILE_THREADS = 4
"""So many files are written or read through at once; routes that only look something up never wait for them."""


class Jobs(Protocol):
    """The queue's book of jobs. Another tenant's are as if they did not exist, and each call may be repeated."""

    def create(self, row: JobRow) -> JobRow:
        """Take a job, or give the one that the same request made within ten minutes."""

    def get(self, tenant: str | None, id: str) -> JobRow:  # noqa: A002 - the word of OpenAI's client
        """A job."""

    def page(
        self, tenant: str | None, after: str | None, limit: int, metadata: Mapping[str, str] | None
    ) -> tuple[Sequence[JobRow], bool]:
        """Jobs, newest first, and whether there are more."""

    def cancel(self, tenant: str | None, id: str) -> JobRow:  # noqa: A002
        """End a job."""

    def pause(self, tenant: str | None, id: str) -> JobRow:  # noqa: A002
        """Have a job wait until it is resumed."""

    def resume(self, tenant: str | None, id: str) -> JobRow:  # noqa: A002
        """Let a paused job go on."""

    def events(
        self,
        tenant: str | None,
        id: str,
        after: str | None,
        limit: int,
    ) -> tuple[Sequence[EventRow], bool]:
        """What happened to a job, newest first, and whether there is more."""

    def checkpoints(
        self,
        tenant: str | None,
        id: str,
        after: str | None,
        limit: int,
    ) -> tuple[Sequence[CheckpointRow], bool]:
        """A job's checkpoints, newest first, and whether there are more."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """Files, uploads, what checks them, jobs, and a folder of this machine for what is on its way."""

    files: Files
    uploads: Uploads
    validator: Validator
    jobs: Jobs
    requests: JobRequests
    spool: Path
    threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(FILE_THREADS))


async def tuning(request: Request) -> Tuning:
    """The app's, as a FastAPI dependency."""
    found = request.app.state.tuning
    assert isinstance(found, Tuning)
    return found


Backend = Annotated[Tuning, Depends(tuning)]
Trainer = Annotated[Caller, Depends(may("train"))]
