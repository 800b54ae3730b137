"""The ends of jobs and of their attempts: state, usage, event and webhook in one transaction, so all or none."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from swapmeet.database.tables import JobRow, UsageRow
from swapmeet.database.tables.base import now
from swapmeet.jobs.events import tell
from swapmeet.jobs.states import Move, Standing, State, Wanted, after
from swapmeet.queue.spending import spend

Announce = Callable[[Session, str, str, str], None]
"""Called as `announce(session, tenant, type, job)` in the transaction that ends a job; `Webhooks.announce` is one."""


def announce_nothing(_session: Session, _tenant: str, _type: str, _job: str) -> None:
    """For platforms without webhooks."""


def standing(row: JobRow) -> Standing:
    """Where a job stands."""
    return Standing(State(row.state), Wanted(row.wanted), row.queued_at is not None)


def move(session: Session, row: JobRow, how: Move, announce: Announce = announce_nothing) -> bool:
    """Move a job that is locked in this transaction; says whether that changed anything.

    An attempt that ends by it is paid for, a lost one as long as it answered; a job that ends by it is announced.

    Raises:
        WrongState: the move does not go with the job's state.
    """
    before = standing(row)
    target = after(how, before)
    if target == before:
        return False
    row.state, row.wanted = target.state, target.wanted
    at = now()
    if before.state is State.RUNNING and target.state is not State.RUNNING:
        settle(session, row, (row.heard_at or row.attempt_at or at) if how is Move.LOSE else at)
        row.node = None
    if target.state is not State.RUNNING:
        row.estimated_finish = row.waits_for = None
    if target.state is State.QUEUED and row.queued_at is None:
        row.queued_at = at
    if target.state.ended:
        row.finished_at = at
        announce(session, row.tenant, f"fine_tuning.job.{target.state}", row.id)
    return True


def fail(session: Session, row: JobRow, code: str, message: str, announce: Announce, param: str | None = None) -> None:
    """End a job by an error, with the sentence that explains it, and where there is a log, with how to read it."""
    if row.attempt:
        message = f"{message} Its log: swapmeet jobs logs {row.id}"
    if move(session, row, Move.FAIL, announce):
        row.error = {"code": code, "message": message, "param": param}
        tell(session, row.id, "failed", f"The job failed: {message}", level="error", data=dict(row.error))


def settle(session: Session, row: JobRow, at: datetime) -> None:
    """Write down what the present attempt used; a token counts once, however often it was trained."""
    totals = spent(session, row, at)
    paid = _paid(session, row)
    row.gpu_seconds = float(totals["gpu_seconds"])
    for kind, total in totals.items():
        if amount := total - paid.get(kind, 0):
            session.add(_usage(row, kind, amount, at))
            spend(session, row.tenant, kind, amount, at)


def spent(session: Session, row: JobRow, at: datetime) -> dict[str, int]:
    """What a job used until now, its present attempt included, by kind of usage."""
    paid = _paid(session, row)
    seconds = max(0.0, (at - row.attempt_at).total_seconds()) if row.attempt_at else 0.0
    return {
        "training_tokens": max(row.trained_tokens, paid.get("training_tokens", 0)),
        "gpu_seconds": paid.get("gpu_seconds", 0) + round(seconds * float(row.resources.get("gpus", 0))),
        "cpu_seconds": paid.get("cpu_seconds", 0) + round(seconds * float(row.resources.get("cpus", 1))),
    }


def _paid(session: Session, row: JobRow) -> dict[str, int]:
    sources = [f"{row.id}/{attempt}" for attempt in range(1, row.attempt + 1)]
    query = select(UsageRow.kind, func.sum(UsageRow.amount)).where(UsageRow.source.in_(sources))
    return {kind: int(amount) for kind, amount in session.execute(query.group_by(UsageRow.kind))}


def _usage(row: JobRow, kind: str, amount: int, at: datetime) -> UsageRow:
    minute = at.replace(second=0, microsecond=0)
    whose: dict[str, Any] = {"tenant": row.tenant, "owner": row.tenant, "subject": row.id, "key": row.created_by}
    return UsageRow(at=minute, source=f"{row.id}/{row.attempt}", kind=kind, amount=amount, **whose)
