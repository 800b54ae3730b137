"""Fine-tuning jobs as their callers see them: create, look, cancel, pause, resume."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar
from uuid import uuid4

from sqlalchemy import ColumnElement, Select, exists, func, inspect, literal, or_, select
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.tables import CheckpointRow, EventRow, JobRow, SweepRow, TenantRow
from swapmeet.database.tables.base import now
from swapmeet.errors import JobNotFound
from swapmeet.ids import shown
from swapmeet.jobs.ending import Announce, announce_nothing, move
from swapmeet.jobs.events import tell
from swapmeet.jobs.states import Move, State, Wanted
from swapmeet.tenancy.audit import note
from swapmeet.tenancy.caller import Caller
from swapmeet.tenancy.quotas import require_storage

REPEATED = timedelta(minutes=10)
"""A client sends a request again whose answer was lost; the same one within this time makes no second job."""

Numbered = TypeVar("Numbered", EventRow, CheckpointRow)


class Jobs:
    """The jobs of all tenants. Another tenant's job is not found, exactly as if it did not exist.

    Args:
        database: where they are recorded.
        announce: told of each end of a job, in its transaction.
    """

    tell = staticmethod(tell)

    def __init__(self, database: Database, announce: Announce = announce_nothing) -> None:
        self._database = database
        self._announce = announce

    def create(self, row: JobRow, by: Caller | None = None) -> JobRow:
        """Record a new job, whose files are looked at next.

        Returns:
            The new job; or the earlier one, where the tenant asked for the same within ten minutes, unless that
            failed or was cancelled: who asks again then wants another.

        Raises:
            QuotaExceeded: the tenant stores all that it may.
        """

        def work(session: Session) -> JobRow:
            # One creation of a tenant's at a time.
            tenant = session.get_one(TenantRow, row.tenant, with_for_update=True)
            earlier = session.get(JobRow, row.id) or session.scalars(_repeated(row)).first()
            if earlier is not None:
                return earlier
            if tenant.stored_bytes is not None:
                require_storage(session, row.tenant, 0, "What a run would keep")
            return add_job(session, row, by)

        return self._database.write(work)

    def get(self, tenant: str | None, job: str) -> JobRow:
        """A tenant's job, or anybody's with None.

        Raises:
            JobNotFound: there is none.
        """
        return self._database.read(lambda session: _find(session, tenant, job))

    def page(
        self, tenant: str | None, after: str | None = None, limit: int = 20, metadata: Mapping[str, str] | None = None
    ) -> tuple[list[JobRow], bool]:
        """Jobs newest first, from the one that follows `after`, and whether there are more.

        Args:
            tenant: whose; None for everybody's.
            after: a job's id.
            limit: how many at most.
            metadata: only jobs that have all of these.

        Raises:
            JobNotFound: `after` is none of the tenant's.
        """

        def work(session: Session) -> tuple[list[JobRow], bool]:
            query = select(JobRow).order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit + 1)
            if tenant is not None:
                query = query.where(JobRow.tenant == tenant)
            if after is not None:
                query = query.where(older_than(JobRow, _find(session, tenant, after)))
            if not all(map(may_be, [*(metadata or {}).keys(), *(metadata or {}).values()])):
                return [], False
            for key, value in (metadata or {}).items():
                query = query.where(_has(session, key, value))
            return cut(session.scalars(query).all(), limit)

        return self._database.read(work)

    def cancel(self, tenant: str | None, job: str, by: Caller | None = None) -> JobRow:
        """End a job at once; a running attempt is stopped within seconds, and its checkpoints stay.

        Raises:
            JobNotFound, WrongState: there is none, or it has ended.
        """
        return self._move(tenant, job, by, Move.CANCEL, "The job was cancelled")

    def pause(self, tenant: str | None, job: str, by: Caller | None = None) -> JobRow:
        """Have a job give its machines back; a running one stays `running` until it has saved a checkpoint.

        Raises:
            JobNotFound, WrongState: there is none, or it has ended.
        """
        return self._move(tenant, job, by, Move.PAUSE, "The job is asked to pause")

    def resume(self, tenant: str | None, job: str, by: Caller | None = None) -> JobRow:
        """Have a paused job go on where it stopped, once it gets machines.

        Raises:
            JobNotFound, WrongState: there is none, or it is not paused.
        """
        return self._move(tenant, job, by, Move.RESUME, "The job is asked to go on")

    def events(
        self, tenant: str | None, job: str, after: str | None = None, limit: int = 20
    ) -> tuple[list[EventRow], bool]:
        """What happened to a job, newest first, from the event that follows `after`, and whether there is more.

        Raises:
            JobNotFound: there is no such job, or `after` is none of its events.
        """
        return self._numbered(EventRow, tenant, job, after, limit)

    def checkpoints(
        self, tenant: str | None, job: str, after: str | None = None, limit: int = 10
    ) -> tuple[list[CheckpointRow], bool]:
        """A job's checkpoints that are models, newest first, from the one that follows `after`; and whether more.

        Raises:
            JobNotFound: there is no such job, or `after` is none of its checkpoints.
        """
        return self._numbered(CheckpointRow, tenant, job, after, limit)

    def _move(self, tenant: str | None, job: str, by: Caller | None, how: Move, said: str) -> JobRow:
        name = f"{how}-{uuid4().hex}"

        def work(session: Session) -> JobRow:
            row = _find(session, tenant, job, lock=True)
            if move(session, row, how, self._announce):
                tell(session, row.id, name, said)
                note(session, by, f"job.{how}", row.id, tenant=row.tenant)
            return row

        return self._database.write(work)

    def _numbered(
        self, table: type[Numbered], tenant: str | None, job: str, after: str | None, limit: int
    ) -> tuple[list[Numbered], bool]:
        def work(session: Session) -> tuple[list[Numbered], bool]:
            _find(session, tenant, job)
            query = select(table).where(table.job == job).order_by(table.number.desc()).limit(limit + 1)
            if after is not None:
                known = select(table.number).where(table.job == job, table.id == after)
                last = session.scalar(known) if may_be(after) else None
                if last is None:
                    raise JobNotFound(f"{job} has no {after[:80]!r} to go on after. Page by the ids that it listed.")
                query = query.where(table.number < last)
            return cut(session.scalars(query).all(), limit)

        return self._database.read(work)


def older_than(table: type[JobRow] | type[SweepRow], last: JobRow | SweepRow) -> ColumnElement[bool]:
    """What follows a row in a list that has the newest first."""
    same = (table.created_at == last.created_at) & (table.id < last.id)
    return or_(table.created_at < last.created_at, same)


def add_job(session: Session, row: JobRow, by: Caller | None) -> JobRow:
    """Record a new job in the caller's transaction, which may be tried again."""
    set_ = inspect(row).dict
    given = {column.key: set_[column.key] for column in inspect(JobRow).column_attrs if column.key in set_}
    job = JobRow(**given)  # a copy, so that the caller's row is still its own
    session.add(job)
    job.state, job.wanted = State.VALIDATING, Wanted.RUN
    session.flush()
    tell(session, job.id, "created", f"Created fine-tuning job: {job.id}")
    note(session, by, "job.create", job.id, detail=f"{job.method} on {job.model}, as {job.adapter}")
    tell(session, job.id, "validating", f"Validating training file: {job.training_file}")
    return job


def _find(session: Session, tenant: str | None, job: str, *, lock: bool = False) -> JobRow:
    row = session.get(JobRow, job, with_for_update=lock) if may_be(job) else None
    if row is None or tenant not in (None, row.tenant):
        raise JobNotFound(f"There is no fine-tuning job {shown(job)}. Check its id.")
    return row


def may_be(text: str) -> bool:
    """Whether the database can be asked for a text: PostgreSQL refuses some, and then it is no job's anyway."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def _repeated(row: JobRow) -> Select[JobRow]:
    """The job that an earlier request just like this one made."""
    same = (JobRow.tenant == row.tenant) & (JobRow.request_digest == row.request_digest)
    gone = JobRow.state.in_([State.FAILED, State.CANCELLED])
    query = select(JobRow).where(same, JobRow.created_at > now() - REPEATED, ~gone)
    return query.order_by(JobRow.created_at.desc()).limit(1)


def _has(session: Session, key: str, value: str) -> ColumnElement[bool]:
    """Whether a job's metadata has this pair; a key may hold any letters, which a JSON path may not."""
    postgres = session.get_bind().dialect.name == "postgresql"
    each = (func.json_each_text if postgres else func.json_each)(JobRow.job_metadata).table_valued("key", "value")
    return exists(select(literal(1)).select_from(each).where(each.c.key == key, each.c.value == value))


def cut(rows: Sequence[Any], limit: int) -> tuple[list[Any], bool]:
    """The first of rows, and whether there are more."""
    return list(rows[:limit]), len(rows) > limit
