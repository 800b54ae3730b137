"""`/v1/fine_tuning/sweeps`: many configurations in one submission, in the shapes of OpenAI's jobs."""

from functools import partial
from typing import Annotated, Any

from anyio import from_thread, to_thread
from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool

from swapmeet.gateway.authority import Caller
from swapmeet.gateway.bodies import json_body
from swapmeet.gateway.fine_tuning import After, IdempotencyKey, Limit, object_of, plan_of
from swapmeet.gateway.pages import page
from swapmeet.gateway.tuning import Backend, Reader, Trainer, Tuning
from swapmeet.planning import Refusal
from swapmeet.sweeps.request import Sweep, SweepRequest, parse_sweep
from swapmeet.sweeps.rows import NewSweep, rows_of
from swapmeet.sweeps.runs import Tried
from swapmeet.sweeps.totals import Plan, Unplanned, plan_all
from swapmeet.sweeps.wire import sweep_event_object, sweep_object

router = APIRouter(prefix="/v1/fine_tuning/sweeps", tags=["fine-tuning"])
SweepLimit = Annotated[int, Query(ge=1, le=100)]
"""Each comes with all its configurations."""


@router.post("", openapi_extra=json_body(SweepRequest))
async def create(
    request: Request, caller: Trainer, backend: Backend, idempotency_key: IdempotencyKey = None
) -> dict[str, Any]:
    """Submit a sweep: a job for each configuration, of which the best is published when all have ended.

    The body is a job's, with what is to be tried under `sweep`. The same request again within ten minutes gives the
    same sweep, unless it has another `idempotency-key`.
    """
    wanted = parse_sweep(object_of(await request.body()))
    return sweep_object(await run_in_threadpool(_submit, backend, wanted, caller, idempotency_key))


@router.get("")
async def sweeps(caller: Reader, backend: Backend, after: After = None, limit: SweepLimit = 20) -> dict[str, Any]:
    """The caller's sweeps, newest first."""
    found, more = await run_in_threadpool(backend.sweeps.page, caller.tenant, after, limit)
    return page([sweep_object(each) for each in found], more)


@router.post("/plan", openapi_extra=json_body(SweepRequest))
async def plan(request: Request, caller: Trainer, backend: Backend) -> dict[str, Any]:
    """What a sweep would need, from the body that would submit it; nothing is recorded, and nothing runs."""
    wanted = parse_sweep(object_of(await request.body()))
    return await to_thread.run_sync(_plan, backend, wanted, caller, limiter=backend.sweep_plans)


@router.get("/{sweep_id}")
async def sweep(sweep_id: str, caller: Reader, backend: Backend) -> dict[str, Any]:
    """One sweep, with its configurations and what they measured."""
    return sweep_object(await run_in_threadpool(backend.sweeps.get, caller.tenant, sweep_id))


@router.post("/{sweep_id}/cancel")
async def cancel(sweep_id: str, caller: Trainer, backend: Backend) -> dict[str, Any]:
    """End a sweep and all its jobs; nothing is published, and their last checkpoints stay."""
    return sweep_object(await run_in_threadpool(backend.sweeps.cancel, caller.tenant, sweep_id, caller))


@router.get("/{sweep_id}/events")
async def events(
    sweep_id: str, caller: Reader, backend: Backend, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    """What happened to a sweep's jobs, newest first, but for their steps."""
    rows, more = await run_in_threadpool(backend.sweeps.events, caller.tenant, sweep_id, after, limit)
    return page([sweep_event_object(*row) for row in rows], more)


def _submit(backend: Tuning, wanted: Sweep, caller: Caller, idempotency_key: str | None) -> Tried:
    return backend.sweeps.create(_rows(backend, wanted, caller, idempotency_key), caller)


def _rows(backend: Tuning, wanted: Sweep, caller: Caller, idempotency_key: str | None = None) -> NewSweep:
    def seen(model: str) -> bool:
        return backend.access.may_read(caller, model)

    return rows_of(backend.requests, wanted, caller.tenant, caller.key, seen, idempotency_key)


def _plan(backend: Tuning, wanted: Sweep, caller: Caller) -> dict[str, Any]:
    new = _rows(backend, wanted, caller)

    def plan_one(place: int) -> Plan | Unplanned:
        ask = partial(to_thread.run_sync, plan_of, backend, new.jobs[place], caller, limiter=backend.plans)
        answer = from_thread.run(ask)  # in turn with those who ask about a job
        return Unplanned(answer.code, answer.message) if isinstance(answer, Refusal) else answer.plan

    found = plan_all(new.configurations, [row.settings for row in new.jobs], plan_one)
    return {"object": "fine_tuning.sweep.plan", "model": new.row.model, "adapter": new.row.adapter, **found}
