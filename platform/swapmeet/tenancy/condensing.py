"""Old usage by the day instead of by the minute: the sums stay, and what a report of whole days says.

Rows are taken out and added to those of their days in one transaction, some at a time. So it does not matter who does
it, whether several do, or when one is killed; and what is told late, of a day that was condensed, is added by the next.
"""

from collections import Counter
from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.tables import JobRow, TenantRow, UsageRow
from swapmeet.tenancy.inserting import insert_on
from swapmeet.tenancy.usage import MOST_ROWS, Cell

CONDENSED = "day"
"""The source of what was condensed."""
FINISHED = ("succeeded", "failed", "cancelled")
BATCH = 2000
"""Rows of one transaction."""


def condense(database: Database, before: datetime) -> None:
    """Condense what was used before a moment, which should begin a day in UTC.

    What unfinished jobs used is left alone: when their attempts end, it is held against what they used in all.
    """
    for tenant in database.read(lambda session: list(session.scalars(select(TenantRow.name)))):
        while database.write(lambda session, tenant=tenant: _some(session, tenant, before)) == BATCH:  # type: ignore[misc]
            pass


def _some(session: Session, tenant: str, before: datetime) -> int:
    """Condense some rows of a tenant's; gives how many."""
    living = select(JobRow.id).where(JobRow.id == UsageRow.subject, JobRow.state.not_in(FINISHED)).exists()
    old = select(UsageRow.id).where(
        UsageRow.tenant == tenant, UsageRow.at < before, UsageRow.source != CONDENSED, ~living
    )
    columns = (UsageRow.at, UsageRow.key, UsageRow.kind, UsageRow.subject, UsageRow.owner, UsageRow.amount)
    taken = delete(UsageRow).where(UsageRow.id.in_(old.limit(BATCH))).returning(*columns)
    rows = session.execute(taken, execution_options={"synchronize_session": False}).all()
    sums: Counter[Cell] = Counter()
    owners: dict[Cell, str] = {}
    for at, key, kind, subject, owner, amount in rows:
        day = at.replace(hour=0, minute=0, second=0, microsecond=0)
        cell = Cell(day, tenant, key, kind, subject, "")
        sums[cell] += amount
        owners[cell] = owner
    _add(session, {cell._replace(owner=owners[cell]): amount for cell, amount in sums.items()})
    return len(rows)


def _add(session: Session, amounts: dict[Cell, int]) -> None:
    """Add to what days have."""
    rows = [cell._asdict() | {"source": CONDENSED, "amount": amount} for cell, amount in sorted(amounts.items())]
    for first in range(0, len(rows), MOST_ROWS):
        statement = insert_on(session, UsageRow).values(rows[first : first + MOST_ROWS])
        unique = [UsageRow.source, UsageRow.at, UsageRow.tenant, UsageRow.kind, UsageRow.subject, UsageRow.key]
        set_ = {"amount": UsageRow.amount + statement.excluded.amount}
        session.execute(statement.on_conflict_do_update(index_elements=unique, set_=set_))
