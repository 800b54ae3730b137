"""`/v1/fine_tuning/jobs/ID/logs`, which OpenAI's API has not: what a job's attempts wrote down."""

from collections.abc import Iterator
from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse, StreamingResponse

from swapmeet.database.tables import JobRow
from swapmeet.gateway.tuning import Backend, Reader
from swapmeet.jobs.logs import Part, heading, lines_of, parts_of

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])
MOST_LINES = 1_000_000_000
AT_ONCE = 500
"""Lines of a log in one piece of an answer."""


@router.get("/{job_id}/logs", response_class=PlainTextResponse)
async def logs(
    job_id: str,
    caller: Reader,
    backend: Backend,
    attempt: Annotated[int | None, Query(ge=1, le=MOST_LINES)] = None,
    skip: Annotated[int, Query(ge=0, le=MOST_LINES)] = 0,
    tail: Annotated[int | None, Query(ge=0, le=MOST_LINES)] = None,
) -> StreamingResponse:
    """What a job's attempts wrote down, as text: of one attempt, or of all, each below a line of its own.

    `tail` gives the last lines of each, `skip` leaves out the first ones. So a running attempt is followed: its lines
    come to the storage every few seconds, and never change. The header `x-swapmeet-first-line` counts from 0.
    """

    def found() -> tuple[JobRow, list[Part]]:
        row = backend.jobs.get(caller.tenant, job_id)
        return row, parts_of(backend.store, row, attempt, skip, tail)

    row, parts = await run_in_threadpool(found)

    def text() -> Iterator[str]:
        for part in parts:
            if attempt is None:
                yield heading(part) + "\n"
            lines = lines_of(backend.store, row.id, part)
            while piece := list(islice(lines, AT_ONCE)):
                yield "".join(f"{line}\n" for line in piece)

    headers = {"x-content-type-options": "nosniff"}
    if attempt is not None:
        headers["x-swapmeet-first-line"] = str(parts[0].first)
    return StreamingResponse(text(), media_type="text/plain", headers=headers)
