"""Transactions of the leader's: each fails if another leads when it is committed."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session, defer

from swapmeet.database import Database
from swapmeet.database.tables import JobRow
from swapmeet.errors import DatabaseFailed, LeaseLost
from swapmeet.jobs.states import State
from swapmeet.queue.lease import Lease, require

T = TypeVar("T")

UNREAD = (JobRow.hyperparameters, JobRow.lora, JobRow.settings, JobRow.job_metadata, JobRow.integrations, JobRow.error)
"""What nobody asks of a job that waits, until it is read again to be changed."""
TOGETHER = 50
"""Jobs of one transaction, where many are changed alike."""


class Leading:
    """What a leader reads and writes of jobs."""

    def __init__(self, database: Database, lease: Lease) -> None:
        self.database, self._lease = database, lease

    def rows(self, state: State) -> list[JobRow]:
        """The jobs in a state, oldest first; those that wait, of whom there may be many, without `UNREAD`."""
        query = select(JobRow).where(JobRow.state == state).order_by(JobRow.created_at, JobRow.id)
        if state in (State.QUEUED, State.VALIDATING):
            query = query.options(*(defer(column, raiseload=True) for column in UNREAD))
        return self.database.read(lambda session: list(session.scalars(query)))

    def change(self, row: JobRow, state: State, work: Callable[[Session, JobRow], T]) -> T | None:
        """Do something to a job, locked; None where it is not in this state any more.

        Raises:
            LeaseLost: another leads; nothing was written.
        """

        def locked(session: Session) -> T | None:
            found = session.get_one(JobRow, row.id, with_for_update=True)
            return work(session, found) if found.state == state else None

        return self.write(locked)

    def change_all(
        self, rows: Sequence[JobRow], state: State, work: Callable[[Session, JobRow], object]
    ) -> list[JobRow]:
        """Do something to jobs, locked, oldest first, many in one transaction.

        Returns:
            Those that it failed at, to be tried alone.

        Raises:
            LeaseLost: another leads; nothing of the last jobs was written.
        """
        failed: list[JobRow] = []
        for first in range(0, len(rows), TOGETHER):
            some = rows[first : first + TOGETHER]

            def locked(session: Session, some: Sequence[JobRow] = some) -> None:
                query = select(JobRow).where(JobRow.id.in_([row.id for row in some]), JobRow.state == state)
                held = session.scalars(query.order_by(JobRow.id).with_for_update()).all()
                for found in sorted(held, key=lambda row: (row.created_at, row.id)):
                    work(session, found)

            try:
                self.write(locked)
            except (LeaseLost, DatabaseFailed):
                raise
            except Exception:
                failed += some
        return failed

    def write(self, work: Callable[[Session], T]) -> T:
        """A transaction.

        Raises:
            LeaseLost: another leads; nothing was written.
        """
        term = self._lease.term

        def checked(session: Session) -> T:
            require(session, term)
            return work(session)

        return self.database.write(checked)
