"""Transactions of the leader's: each fails if another leads when it is committed."""

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.tables import JobRow
from swapmeet.jobs.states import State
from swapmeet.queue.lease import Lease, require

T = TypeVar("T")


class Leading:
    """What a leader reads and writes of jobs."""

    def __init__(self, database: Database, lease: Lease) -> None:
        self.database, self._lease = database, lease

    def rows(self, state: State) -> list[JobRow]:
        """The jobs in a state, oldest first."""
        query = select(JobRow).where(JobRow.state == state).order_by(JobRow.created_at, JobRow.id)
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
