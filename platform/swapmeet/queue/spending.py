"""What each tenant's runs used lately: one row for each, written with the end of each attempt.

So whoever decides reads as many rows as there are tenants, however much they ran, whoever led before, and without
looking into the ledger, which is for bills and may be condensed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from swapmeet.database.tables import SpendingRow
from swapmeet.queue.turns import decayed
from swapmeet.tenancy.inserting import insert_on

KINDS = ("gpu_seconds", "cpu_seconds")
DAY = timedelta(days=1)
"""The time over which a quota of GPU-seconds a day counts: at any moment the last one, not that of a calendar."""
HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Spent:
    """What a tenant used of one kind, in its unit, as of a moment.

    Attributes:
        at: the moment.
        faded: all of it, each part worth less the longer it is ago (`turns.decayed`).
        hours: what ended in each hour, by the hour's number since the epoch; none that is over a day old at `at`.
    """

    at: float
    faded: float = 0.0
    hours: dict[str, int] = field(default_factory=dict)

    def used(self, now: float) -> float:
        """What it still counts for whose turn it is."""
        return decayed([(self.at, self.faded)], now)

    def of_the_day(self, now: float) -> int:
        """What counts against the quota of a day: an hour does until its end is a day ago."""
        oldest = _hour(now) - DAY // HOUR
        return sum(amount for hour, amount in self.hours.items() if int(hour) >= oldest)

    def plus(self, amount: int, at: float) -> "Spent":
        """With an amount whose use ended at a moment, which may be before the last one."""
        latest = max(at, self.at)
        oldest = _hour(latest) - DAY // HOUR
        hours = {hour: each for hour, each in self.hours.items() if int(hour) >= oldest}
        if _hour(at) >= oldest:
            hours[str(_hour(at))] = hours.get(str(_hour(at)), 0) + amount
        return Spent(latest, decayed([(self.at, self.faded), (at, amount)], latest), hours)


def spend(session: Session, tenant: str, kind: str, amount: int, at: datetime) -> None:
    """Note what an attempt used, in the transaction that writes it into the ledger; other kinds are left to that."""
    if kind not in KINDS:
        return
    fresh = {"tenant": tenant, "kind": kind, "at": at, "faded": 0.0, "hours": {}}
    session.execute(insert_on(session, SpendingRow).values(fresh).on_conflict_do_nothing())
    row = session.get_one(SpendingRow, (tenant, kind), with_for_update=True, populate_existing=True)
    now = _spent(row.at, row.faded, row.hours).plus(amount, at.timestamp())
    row.at, row.faded, row.hours = datetime.fromtimestamp(now.at, UTC), now.faded, now.hours
    session.flush()


def spending(session: Session, kinds: Iterable[str]) -> dict[tuple[str, str], Spent]:
    """What all tenants used, by tenant and kind."""
    columns = (SpendingRow.tenant, SpendingRow.kind, SpendingRow.at, SpendingRow.faded, SpendingRow.hours)
    rows = session.execute(select(*columns).where(SpendingRow.kind.in_(tuple(kinds))))
    return {(tenant, kind): _spent(at, faded, hours) for tenant, kind, at, faded, hours in rows}


def _spent(at: datetime, faded: float, hours: dict[str, int]) -> Spent:
    return Spent(at.timestamp(), faded, hours)


def _hour(moment: float) -> int:
    return int(moment // HOUR.total_seconds())
