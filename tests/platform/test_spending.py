"""What tenants used lately is one row each, whatever order attempts end in, and says the same as all of them would."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.tables import SpendingRow, TenantRow
from swapmeet.queue.shares import shares
from swapmeet.queue.spending import Spent, spend
from swapmeet.queue.turns import HALF_LIFE, decayed

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
DAY, HOUR = 86_400.0, 3600.0
ends = st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 4 * DAY)), max_size=30)


@given(ends, st.floats(0, 2 * DAY))
def test_in_whatever_order_attempts_end_it_is_what_all_of_them_are(ends: list[tuple[int, float]], later: float) -> None:
    begin, spent = NOON.timestamp(), Spent(0.0)
    for amount, at in ends:
        spent = spent.plus(amount, begin + at)
    now = max([begin, *(begin + at for _, at in ends)]) + later
    assert spent.used(now) == pytest.approx(decayed([(begin + at, amount) for amount, at in ends], now), abs=1e-3)
    hour = now // HOUR
    assert spent.of_the_day(now) == sum(amount for amount, at in ends if (begin + at) // HOUR >= hour - 24)
    assert len(spent.hours) <= 25


@pytest.fixture
def tenants(database: Database) -> Database:
    rows = [TenantRow(name="acme", gpu_seconds_a_day=1000), TenantRow(name="ben"), TenantRow(name="cara", weight=0)]
    database.write(lambda session: session.add_all(rows))
    return database


def share_of(database: Database, tenant: str, at: datetime, *, gpus: bool = True) -> tuple[float, float | None]:
    found = database.read(lambda session: shares(session, (), at.timestamp(), gpus=gpus))[tenant]
    return found.used, found.gpu_seconds_left


def test_of_attempts_that_end_at_once_none_is_forgotten(tenants: Database) -> None:
    def end(session: Session) -> None:
        spend(session, "acme", "gpu_seconds", 10, NOON)
        spend(session, "acme", "cpu_seconds", 1, NOON)
        spend(session, "acme", "training_tokens", 10**9, NOON)

    threads = [threading.Thread(target=lambda: tenants.write(end)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert share_of(tenants, "acme", NOON) == (120, 880)
    assert share_of(tenants, "acme", NOON, gpus=False) == (12, 880)
    assert share_of(tenants, "acme", NOON + timedelta(seconds=HALF_LIFE)) == (60, 880)
    assert share_of(tenants, "ben", NOON) == (0, None)
    assert tenants.read(lambda session: session.scalar(select(func.count()).select_from(SpendingRow))) == 2


def test_the_day_of_a_quota_is_the_last_one(tenants: Database) -> None:
    for hours, amount in ((0, 600), (3, 300), (-30, 5000)):  # the last was found out a day late
        at = NOON + timedelta(hours=hours)
        tenants.write(lambda session, at=at, amount=amount: spend(session, "acme", "gpu_seconds", amount, at))  # type: ignore[misc]
    assert share_of(tenants, "acme", NOON + timedelta(hours=3))[1] == 100
    assert share_of(tenants, "acme", NOON + timedelta(hours=24, minutes=59))[1] == 100
    assert share_of(tenants, "acme", NOON + timedelta(hours=25))[1] == 700
    assert share_of(tenants, "acme", NOON + timedelta(hours=28))[1] == 1000
    other = Database(tenants.url)  # another leader, or the same one later
    assert share_of(other, "acme", NOON + timedelta(hours=25))[1] == 700
    other.close()
