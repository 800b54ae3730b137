"""What is old goes, or is condensed, in time; and nothing that somebody still needs does."""

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.tables import AuditRow, EventRow, FileRow, JobRow, TenantRow, UsageRow
from swapmeet.database.tables.base import now
from swapmeet.errors import QuotaExceeded
from swapmeet.jobs import Jobs
from swapmeet.jobs.ending import move, spent
from swapmeet.jobs.leftovers import clear, kept_bytes
from swapmeet.jobs.states import Move
from swapmeet.retention import Retention
from swapmeet.settings import load_settings
from swapmeet.tenancy import Caller, Tenancy, audit_chain
from swapmeet.tenancy.condensing import BATCH, CONDENSED, condense
from swapmeet.tenancy.quotas import require_storage, stored_bytes
from swapmeet.tenancy.stocktaking import Stocktaking, note_published
from swapmeet_registry import Fingerprint, Registry
from swapmeet_registry.stores import Store, open_store
from swapmeet_training.attempts.run_storage import RunStorage

NOON = datetime(2026, 11, 22, 12, 0, 30, tzinfo=UTC)
DAY = timedelta(days=1)
ACME = Caller("acme", "key-a", frozenset({"train"}))


@pytest.fixture
def books(database: Database) -> Tenancy:
    database.write(lambda session: session.add_all([TenantRow(name=name) for name in ("acme", "ben")]))
    return Tenancy(database)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/storage")


def a_job(number: int, **columns: Any) -> JobRow:
    described: dict[str, Any] = {
        "id": f"ftjob-{number}", "tenant": "acme", "created_by": "key-a", "request_digest": str(number),
        "model": "tiny", "base": "tiny", "adapter": "acme/legal", "training_file": "file-1", "method": "supervised",
        "seed": 1, "hyperparameters": {}, "lora": {}, "settings": {}, "resources": {"cpus": 1}, "plan": {},
        "job_metadata": {}, "integrations": [], "state": "queued",
    }  # fmt: skip
    return JobRow(**described | columns)


def tell(books: Tenancy, source: str, at: datetime, amount: int, kind: Any = "training_tokens", **more: str) -> None:
    books.database.write(
        lambda session: books.usage.add(
            session, source=source, tenant="acme", kind=kind, amount=amount, at=at, **{"subject": "acme/x", **more}
        )
    )


def ledger(database: Database) -> list[tuple[str, str, str, int]]:
    query = select(UsageRow.source, UsageRow.at, UsageRow.subject, UsageRow.amount).order_by(UsageRow.at, UsageRow.id)
    rows = database.read(lambda session: session.execute(query).all())
    return [(source, f"{at:%d %H:%M}", subject, amount) for source, at, subject, amount in rows]


def test_old_usage_is_kept_by_the_day_and_no_report_of_days_changes(books: Tenancy, database: Database) -> None:
    for number in range(5):
        tell(books, f"gateway-{number}", NOON - 3 * DAY + number * timedelta(minutes=1), 10, owner="acme")
    tell(books, "gateway-1", NOON - 3 * DAY, 7, kind="gpu_seconds")
    tell(books, "gateway-1", NOON - 2 * DAY, 100)
    tell(books, "gateway-1", NOON, 1000)
    span = NOON - 10 * DAY, NOON + DAY
    before = [books.usage.report(*span, by) for by in ([], ["day"], ["tenant", "adapter", "key"])]
    threads = [threading.Thread(target=condense, args=(database, NOON - DAY)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [books.usage.report(*span, by) for by in ([], ["day"], ["tenant", "adapter", "key"])] == before
    assert books.usage.report(*span, owner="acme")[0]["training_tokens"] == 50
    assert sorted(ledger(database)) == [
        (CONDENSED, "19 00:00", "acme/x", 7),
        (CONDENSED, "19 00:00", "acme/x", 50),
        (CONDENSED, "20 00:00", "acme/x", 100),
        ("gateway-1", "22 12:00", "acme/x", 1000),
    ]
    tell(books, "gateway-9", NOON - 3 * DAY, 5)  # somebody tells it late
    condense(database, NOON - DAY)
    assert (CONDENSED, "19 00:00", "acme/x", 55) in ledger(database)


def test_more_than_one_transaction_may_hold_is_condensed(books: Tenancy, database: Database) -> None:
    rows = [
        {"at": NOON - 3 * DAY, "source": f"s{number}", "tenant": "acme", "kind": "training_tokens", "amount": 1,
         "key": "", "subject": "", "owner": ""}
        for number in range(BATCH + 10)
    ]  # fmt: skip
    database.write(lambda session: session.execute(UsageRow.__table__.insert(), rows))  # type: ignore[attr-defined]
    condense(database, NOON)
    assert ledger(database) == [(CONDENSED, "19 00:00", "", BATCH + 10)]


def test_what_an_unfinished_job_used_is_left_for_its_end(books: Tenancy, database: Database) -> None:
    """It was paused for long; when it goes on, nothing that it paid for is charged again."""
    row = a_job(1, state="paused", attempt=1, trained_tokens=500, queued_at=NOON)
    database.write(lambda session: session.add_all([row, a_job(2, state="failed")]))
    tell(books, "ftjob-1/1", NOON - 100 * DAY, 500, subject="ftjob-1")
    tell(books, "ftjob-2/1", NOON - 100 * DAY, 9, subject="ftjob-2")
    condense(database, NOON)
    assert {source for source, *_ in ledger(database)} == {"ftjob-1/1", CONDENSED}

    def end(session: Session) -> int:
        found = session.get_one(JobRow, "ftjob-1")
        move(session, found, Move.RESUME)
        move(session, found, Move.START)
        found.attempt, found.attempt_at, found.trained_tokens = 2, now(), 600
        move(session, found, Move.FAIL)
        session.flush()
        return spent(session, found, now())["training_tokens"]

    assert database.write(end) == 600
    total = select(func.sum(UsageRow.amount)).where(UsageRow.subject == "ftjob-1", UsageRow.kind == "training_tokens")
    assert database.read(lambda session: session.scalar(total)) == 600


def enter(database: Database, at: datetime, action: str) -> None:
    """An entry of the audit log."""
    texts = dict.fromkeys(("key", "subject", "request", "detail"), "")
    row = AuditRow(at=at, tenant="acme", actor="acme", action=action, outcome="done", **texts)
    database.write(lambda session: audit_chain.add(session, row))


def test_the_audit_log_is_forgotten_from_its_old_end(books: Tenancy, database: Database) -> None:
    for age in (500, 401, 2, 399, 1):
        enter(database, NOON - age * DAY, f"a{age}")
    books.audit.forget(NOON - 400 * DAY)
    assert [row.action for row in books.audit.page(None)[0]] == ["a1", "a399", "a2"]


def leave(store: Store, job: str, tmp_path: Path) -> None:
    """What an attempt may leave behind."""
    runs, folder = RunStorage(store, job), tmp_path / "left"
    folder.mkdir(exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(b"12345")
    for step in (1, 2):
        runs.keep(runs.key(1, f"checkpoint-{step}"), folder, {})
    runs.keep(runs.key(1, "adapter"), folder, {})
    for name in ("log.txt", "losses.jsonl"):
        runs.put(runs.key(1, name), b"{}")


def left(store: Store, job: str) -> set[str]:
    return {key.split("/")[3].split(".")[0] for key in store.list(f"runs/{job}/")}


def test_leftovers_of_ended_jobs_go_and_no_living_ones(
    books: Tenancy, database: Database, store: Store, tmp_path: Path
) -> None:
    old, fresh = now() - 40 * DAY, now() - DAY
    wanted = [("failed", old), ("cancelled", old), ("failed", fresh), ("succeeded", fresh), ("succeeded", now())]
    living = [(state, None) for state in ("validating_files", "queued", "running", "paused")]
    for number, (state, finished) in enumerate([*wanted, *living]):
        row = a_job(number, state=state, finished_at=finished, kept_bytes=10, created_at=old)
        database.write(lambda session, row=row: session.add(row))  # type: ignore[misc]
        leave(store, f"ftjob-{number}", tmp_path)
    everything = {"checkpoint-1", "checkpoint-2", "adapter", "log", "losses"}
    assert kept_bytes(RunStorage(store, "ftjob-0")) == 10

    clear(database, store, None)  # kept for ever
    assert [left(store, f"ftjob-{number}") for number in range(5)] == [
        everything, everything, everything, {"log", "losses"}, everything,
    ]  # fmt: skip
    for _ in range(2):
        clear(database, store, 30 * DAY)
    assert [left(store, f"ftjob-{number}") for number in range(9)] == [
        set(), set(), everything, {"log", "losses"}, everything, *[everything] * 4,
    ]  # fmt: skip
    rows = database.read(lambda session: session.scalars(select(JobRow).order_by(JobRow.id)).all())
    assert [row.kept_bytes for row in rows] == [0, 0, 10, 0, 10, 10, 10, 10, 10]
    told = database.read(lambda session: session.scalars(select(EventRow).order_by(EventRow.job)).all())
    assert [(event.job, event.name) for event in told] == [("ftjob-0", "cleared"), ("ftjob-1", "cleared")]


def test_a_storage_that_fails_is_asked_again_and_loses_no_book_keeping(
    books: Tenancy, database: Database, store: Store, tmp_path: Path
) -> None:
    from swapmeet_registry import StoreError

    database.write(lambda session: session.add(a_job(1, state="failed", finished_at=now() - 40 * DAY, kept_bytes=10)))
    leave(store, "ftjob-1", tmp_path)

    class Away:
        def __getattr__(self, name: str) -> Any:
            if name == "delete":
                raise StoreError("away")
            return getattr(store, name)

    away: Any = Away()
    clear(database, away, 30 * DAY)
    assert left(store, "ftjob-1") >= {"log"}
    clear(database, store, 30 * DAY)
    assert left(store, "ftjob-1") == set()


def test_quotas_count_all_that_is_stored(
    books: Tenancy, database: Database, tmp_path: Path, published: tuple[Fingerprint, Path]
) -> None:
    registry = Registry(f"file://{tmp_path}/registry")
    base, folder = published
    version = registry.push(folder, "acme/legal", base=base)
    registry.push(folder, "acme/again", base=base)  # the same files, which are there once
    registry.push(folder, "ben/other", base=base)
    size = registry.manifest(version).size
    stock = Stocktaking(database, registry)
    stock.count()
    file = FileRow(id="file-1", tenant="acme", filename="x", purpose="", bytes=100, sha256="")
    database.write(lambda session: session.add_all([file, a_job(1, kept_bytes=20, state="paused")]))

    def total(session: Session) -> tuple[int, int, int]:
        stored = stored_bytes(session, session.get_one(TenantRow, "acme"))
        return stored.files, stored.checkpoints, stored.adapters

    assert database.read(total) == (100, 20, size)
    books.usage.measure_storage()
    measured = books.usage.report(now() - DAY, now() + DAY, ["tenant"])
    assert {row["tenant"]: row["stored_byte_hours"] for row in measured} == {"acme": 120 + size, "ben": size}

    limit = 120 + size
    database.write(lambda session: setattr(session.get_one(TenantRow, "acme"), "stored_bytes", limit))
    with pytest.raises(QuotaExceeded, match=f"7 bytes more are over your quota: {limit} of {limit} bytes are stored"):
        database.write(lambda session: require_storage(session, "acme", 7))
    jobs = Jobs(database)
    with pytest.raises(QuotaExceeded, match=f"What a run would keep is over .* 20 in checkpoints, {size} in adapters"):
        jobs.create(a_job(2), ACME)
    registry.yank("acme/legal:1", "wrong")
    registry.recall("acme/again:1", "wrong")
    stock.count()
    with pytest.raises(QuotaExceeded):  # the bytes are still there
        jobs.create(a_job(2), ACME)
    registry.delete("acme/legal:1", "wrong")
    registry.delete("acme/again:1", "wrong")
    stock.count()
    assert jobs.create(a_job(2), ACME).id == "ftjob-2"
    other = registry.push(folder, "acme/other", base=base)
    database.write(lambda session: note_published(session, other, size))
    with pytest.raises(QuotaExceeded):
        jobs.create(a_job(3), ACME)


def test_settings_say_for_how_long(database: Database, tmp_path: Path, books: Tenancy) -> None:
    for days, found in (({"usage_days": 0, "audit_days": 0}, 2), ({}, 0)):
        settings = load_settings(home=tmp_path / "home", database=database.url, **days)
        if found:
            tell(books, "gateway-1", now() - 1000 * DAY, 5)
            enter(database, now() - 1000 * DAY, "a")
        Retention(settings, database).clean()
        old = database.read(
            lambda session: session.scalars(select(UsageRow.source).where(UsageRow.source != CONDENSED)).all()
        )
        assert len(old) + len(books.audit.page(None)[0]) == found
