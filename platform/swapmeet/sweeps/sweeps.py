"""Sweeps as their callers see them: create, look, cancel."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from enum import StrEnum
from uuid import uuid4

from sqlalchemy import select
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.tables import EventRow, JobRow, SweepRow, SweepRunRow, TenantRow
from swapmeet.database.tables.base import now
from swapmeet.errors import NotFound, WrongState
from swapmeet.ids import shown
from swapmeet.jobs.ending import Announce, announce_nothing, move
from swapmeet.jobs.events import tell
from swapmeet.jobs.jobs import REPEATED, add_job, cut, may_be, older_than
from swapmeet.jobs.states import Move, State
from swapmeet.sweeps.rows import NewSweep
from swapmeet.sweeps.runs import Run, Tried
from swapmeet.tenancy.audit import note
from swapmeet.tenancy.caller import Caller
from swapmeet.tenancy.quotas import require_storage


class SweepState(StrEnum):
    """Where a sweep stands: it is running until it was decided what becomes of it."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDS = tuple(state for state in State if state.ended)


class Sweeps:
    """The sweeps of all tenants. Another tenant's is not found, exactly as if it did not exist.

    Args:
        database: where they are recorded.
        announce: told of each end of a sweep and of its jobs, in its transaction.
    """

    def __init__(self, database: Database, announce: Announce = announce_nothing) -> None:
        self._database = database
        self._announce = announce

    def create(self, new: NewSweep, by: Caller | None = None) -> Tried:
        """Record a new sweep with all its jobs, or none of it.

        Returns:
            The new sweep; or the earlier one, where the tenant asked for the same within ten minutes, unless that
            failed or was cancelled.
        """

        def work(session: Session) -> Tried:
            # One creation of a tenant's at a time.
            tenant = session.get_one(TenantRow, new.row.tenant, with_for_update=True)
            earlier = session.get(SweepRow, new.row.id) or _repeated(session, new.row)
            if earlier is not None:
                return _tried(session, [earlier])[0]
            if tenant.stored_bytes is not None:
                require_storage(session, new.row.tenant, 0, "What the runs would keep")
            row = session.merge(new.row)  # a copy, as this may be tried again
            row.state = SweepState.RUNNING
            session.flush()
            note(session, by, "sweep.create", row.id, detail=f"{len(new.jobs)} jobs on {row.model}, as {row.adapter}")
            for number, (job, configuration) in enumerate(zip(new.jobs, new.configurations, strict=True), 1):
                add_job(session, job, by)
                session.add(
                    SweepRunRow(sweep=row.id, number=number, job=job.id, configuration=dict(configuration), metrics={})
                )
            session.flush()
            return _tried(session, [row])[0]

        return self._database.write(work)

    def get(self, tenant: str | None, sweep: str) -> Tried:
        """A tenant's sweep, or anybody's with None.

        Raises:
            NotFound: there is none.
        """
        return self._database.read(lambda session: _tried(session, [_find(session, tenant, sweep)])[0])

    def page(self, tenant: str | None, after: str | None = None, limit: int = 20) -> tuple[list[Tried], bool]:
        """Sweeps newest first, from the one that follows `after`, and whether there are more.

        Raises:
            NotFound: `after` is none of the tenant's.
        """

        def work(session: Session) -> tuple[list[Tried], bool]:
            query = select(SweepRow).order_by(SweepRow.created_at.desc(), SweepRow.id.desc()).limit(limit + 1)
            if tenant is not None:
                query = query.where(SweepRow.tenant == tenant)
            if after is not None:
                query = query.where(older_than(SweepRow, _find(session, tenant, after)))
            rows, more = cut(session.scalars(query).all(), limit)
            return _tried(session, rows), more

        return self._database.read(work)

    def cancel(self, tenant: str | None, sweep: str, by: Caller | None = None) -> Tried:
        """End a sweep and all its jobs at once; nothing is published, and the checkpoints stay.

        Raises:
            NotFound, WrongState: there is none; or it has ended, or all its jobs have, and its best is published now.
        """
        name = f"cancel-{uuid4().hex}"

        def work(session: Session) -> Tried:
            row = _find(session, tenant, sweep, lock=True)
            if row.state == SweepState.CANCELLED:
                return _tried(session, [row])[0]
            jobs = session.scalars(select(JobRow).where(JobRow.sweep == row.id).order_by(JobRow.id).with_for_update())
            under_way = [job for job in jobs.all() if not State(job.state).ended]
            if row.state != SweepState.RUNNING:
                raise WrongState(f"This sweep is {row.state} and can not be cancelled. Create a new one.")
            if not under_way:
                raise WrongState("All jobs of this sweep have ended, and its best adapter is being published. Wait.")
            row.state, row.finished_at = SweepState.CANCELLED, now()
            for job in under_way:
                move(session, job, Move.CANCEL, self._announce)
                tell(session, job.id, name, f"The job was cancelled with its sweep {row.id}")
            note(session, by, "sweep.cancel", row.id, tenant=row.tenant, detail=f"{len(under_way)} jobs")
            self._announce(session, row.tenant, "fine_tuning.sweep.cancelled", row.id)
            session.flush()
            return _tried(session, [row])[0]

        return self._database.write(work)

    def events(
        self, tenant: str | None, sweep: str, after: str | None = None, limit: int = 20
    ) -> tuple[list[tuple[EventRow, int]], bool]:
        """What was told of all its jobs, but for their steps: newest first, from the event that follows `after`.

        Each with the number of its configuration.

        Raises:
            NotFound: there is no such sweep, or `after` is none of its events.
        """

        def work(session: Session) -> tuple[list[tuple[EventRow, int]], bool]:
            row = _find(session, tenant, sweep)
            query = select(EventRow, SweepRunRow.number).join(SweepRunRow, SweepRunRow.job == EventRow.job)
            query = query.where(SweepRunRow.sweep == row.id, EventRow.type == "message")
            if after is not None:
                last = session.scalar(query.where(EventRow.id == after)) if may_be(after) else None
                if last is None:
                    raise NotFound(f"{row.id} has no {after[:80]!r} to go on after. Page by the ids that it listed.")
                query = query.where(EventRow.number < last.number)
            rows = session.execute(query.order_by(EventRow.number.desc()).limit(limit + 1)).all()
            return cut([(event, number) for event, number in rows], limit)

        return self._database.read(work)


def runs_of(session: Session, sweeps: Iterable[str]) -> dict[str, tuple[Run, ...]]:
    """The configurations of sweeps, in order, by sweep."""
    columns = (
        *(SweepRunRow.sweep, SweepRunRow.number, SweepRunRow.configuration, SweepRunRow.metrics, SweepRunRow.adapter),
        *(JobRow.id, JobRow.state, JobRow.step, JobRow.total_steps, JobRow.trained_tokens, JobRow.estimated_finish),
        *(JobRow.waits_for, JobRow.result_file, JobRow.error),
    )
    query = select(*columns).join(JobRow, JobRow.id == SweepRunRow.job).where(SweepRunRow.sweep.in_(list(sweeps)))
    found: dict[str, list[Run]] = defaultdict(list)
    for sweep, *values in session.execute(query.order_by(SweepRunRow.sweep, SweepRunRow.number)):
        found[sweep].append(Run(*values))
    return {sweep: tuple(runs) for sweep, runs in found.items()}


def _tried(session: Session, rows: Sequence[SweepRow]) -> list[Tried]:
    runs = runs_of(session, [row.id for row in rows])
    return [Tried(row, runs[row.id]) for row in rows]


def _find(session: Session, tenant: str | None, sweep: str, *, lock: bool = False) -> SweepRow:
    row = session.get(SweepRow, sweep, with_for_update=lock) if may_be(sweep) else None
    if row is None or tenant not in (None, row.tenant):
        raise NotFound(f"There is no sweep {shown(sweep)}. Check its id.")
    return row


def _repeated(session: Session, row: SweepRow) -> SweepRow | None:
    """The sweep that an earlier request just like this one made."""
    same = (SweepRow.tenant == row.tenant) & (SweepRow.request_digest == row.request_digest)
    gone = SweepRow.state.in_([SweepState.FAILED, SweepState.CANCELLED])
    query = select(SweepRow).where(same, SweepRow.created_at > now() - REPEATED, ~gone)
    return session.scalars(query.order_by(SweepRow.created_at.desc()).limit(1)).first()
