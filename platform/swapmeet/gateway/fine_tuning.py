"""`/v1/fine_tuning/jobs` as OpenAI's API has it."""

import re
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Header, Query, Request
from fastapi.concurrency import run_in_threadpool

from swapmeet.database.tables import JobRow
from swapmeet.errors import RequestRefused
from swapmeet.files.rules import shortened
from swapmeet.fine_tuning import JobRequest, parse_request
from swapmeet.fine_tuning.request import LONGEST_KEY, LONGEST_VALUE, MOST_METADATA
from swapmeet.fine_tuning.wire import checkpoint_object, event_object, job_object
from swapmeet.gateway.authority import Caller
from swapmeet.gateway.bodies import json_body
from swapmeet.gateway.pages import page
from swapmeet.gateway.tuning import Backend, Reader, Trainer, Tuning
from swapmeet.planning import Answer, Refusal, needs_of, places, question_of
from swapmeet_registry import canonical

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])
planning = APIRouter(prefix="/v1/fine_tuning", tags=["fine-tuning"])
MOST = 1000
METADATA = re.compile(r"metadata\[(.*)\]", re.DOTALL)
Limit = Annotated[int, Query(ge=1, le=MOST)]
After = Annotated[str | None, Query(max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
IdempotencyKey = Annotated[str | None, Header(max_length=255)]


@router.post("", openapi_extra=json_body(JobRequest))
async def create(
    request: Request, caller: Trainer, backend: Backend, idempotency_key: IdempotencyKey = None
) -> dict[str, Any]:
    """Submit a job. The same request again within ten minutes gives the same job: the answer may have been lost.

    Who wants two jobs alike sends an `idempotency-key` of its own with each.
    """
    wanted = parse_request(object_of(await request.body()))
    return job_object(await run_in_threadpool(_submit, backend, wanted, caller, idempotency_key))


def _submit(backend: Tuning, wanted: JobRequest, caller: Caller, idempotency_key: str | None) -> JobRow:
    return backend.jobs.create(_row(backend, wanted, caller, idempotency_key), caller)


def _row(backend: Tuning, wanted: JobRequest, caller: Caller, idempotency_key: str | None = None) -> JobRow:
    def seen(model: str) -> bool:
        return backend.access.may_read(caller, model)

    return backend.requests.row(wanted, caller.tenant, caller.key, seen, idempotency_key)


@router.get("")
async def jobs(
    request: Request, caller: Reader, backend: Backend, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    """The caller's jobs, newest first; `metadata[KEY]=VALUE` gives those that have it, every pair given."""
    wanted = _metadata(request)
    rows, more = await run_in_threadpool(backend.jobs.page, caller.tenant, after, limit, wanted)
    return page([job_object(row) for row in rows], more)


@router.get("/{job_id}")
async def job(job_id: str, caller: Reader, backend: Backend) -> dict[str, Any]:
    """One job."""
    return job_object(await run_in_threadpool(backend.jobs.get, caller.tenant, job_id))


@router.post("/{job_id}/cancel")
async def cancel(job_id: str, caller: Trainer, backend: Backend) -> dict[str, Any]:
    """End a job; its last checkpoint stays."""
    return job_object(await run_in_threadpool(backend.jobs.cancel, caller.tenant, job_id, caller))


@router.post("/{job_id}/pause")
async def pause(job_id: str, caller: Trainer, backend: Backend) -> dict[str, Any]:
    """Stop a job at its next step, to be resumed."""
    return job_object(await run_in_threadpool(backend.jobs.pause, caller.tenant, job_id, caller))


@router.post("/{job_id}/resume")
async def resume(job_id: str, caller: Trainer, backend: Backend) -> dict[str, Any]:
    """Let a paused job go on from where it stopped."""
    return job_object(await run_in_threadpool(backend.jobs.resume, caller.tenant, job_id, caller))


@router.get("/{job_id}/events")
async def events(
    job_id: str, caller: Reader, backend: Backend, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    """What happened to a job, newest first."""
    rows, more = await run_in_threadpool(backend.jobs.events, caller.tenant, job_id, after, limit)
    return page([event_object(row) for row in rows], more)


@router.get("/{job_id}/checkpoints")
async def checkpoints(
    job_id: str, caller: Reader, backend: Backend, after: After = None, limit: Limit = 10
) -> dict[str, Any]:
    """A job's checkpoints, newest first: models, also while the job still runs."""
    rows, more = await run_in_threadpool(backend.jobs.checkpoints, caller.tenant, job_id, after, limit)
    return page([checkpoint_object(row) for row in rows], more)


@planning.post("/plan", openapi_extra=json_body(JobRequest))
async def plan(request: Request, caller: Trainer, backend: Backend) -> dict[str, Any]:
    """What a job would need, from the same body that would submit it; nothing is recorded, and nothing runs."""
    wanted = parse_request(object_of(await request.body()))
    return await to_thread.run_sync(_plan, backend, wanted, caller, limiter=backend.plans)


def _plan(backend: Tuning, wanted: JobRequest, caller: Caller) -> dict[str, Any]:
    row = _row(backend, wanted, caller)
    answer = plan_of(backend, row, caller)
    if isinstance(answer, Refusal):
        raise RequestRefused(answer.message, None, answer.code)
    needs = needs_of(row.resources, answer.plan, backend.machines())
    return {"object": "fine_tuning.plan", "model": row.model, "adapter": row.adapter, **answer.plan, "resources": needs}


def plan_of(backend: Tuning, row: JobRow, caller: Caller) -> Answer:
    """What a job would need that is not recorded.

    Raises:
        RequestRefused: its files are not checked yet.
    """
    if "epochs" not in row.settings:
        raise RequestRefused(f"{row.training_file} is still being checked. Ask again shortly.", "training_file")
    training = backend.files.get(caller.tenant, row.training_file)
    validation = backend.files.get(caller.tenant, row.validation_file) if row.validation_file else None
    machines = backend.machines()
    embedded = not backend.requests.settings.ray_address and len(machines) == 1
    found = places(row.resources, machines, embedded=embedded)
    return backend.planner(question_of(row, training, validation, found))


def object_of(body: bytes) -> dict[str, Any]:
    """A body as the object that it must be.

    Raises:
        RequestRefused: it is none.
    """
    try:
        return canonical.decode(body)
    except ValueError as error:
        raise RequestRefused(f"The body is {error}. Send one JSON object.") from None


def _metadata(request: Request) -> dict[str, str] | None:
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if pair := METADATA.fullmatch(name):
            found[pair[1]] = value
    for key, value in found.items():
        if not (1 <= len(key) <= LONGEST_KEY and len(value) <= LONGEST_VALUE and (key + value).isprintable()):
            raise RequestRefused(f"metadata[{shortened(key)}] can be no job's. Correct its key or value.", "metadata")
    if len(found) > MOST_METADATA:
        raise RequestRefused(f"{len(found)} pairs are asked for, where {MOST_METADATA} are the most.", "metadata")
    return found or None
