"""The ledger counts each thing once, the rates fill evenly, and quotas hold when many try at once."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.tables import AuditRow, FileRow, UploadRow, UsageRow
from swapmeet.database.tables.base import now
from swapmeet.errors import Conflict, DatabaseFailed, Forbidden, NotFound, QuotaExceeded, RateLimited
from swapmeet.tenancy import OPERATOR, Caller, Limits, Tenancy
from swapmeet.tenancy.audit import Audit, note
from swapmeet.tenancy.ledger import Ledger
from swapmeet.tenancy.rates import MOST, Rates
from swapmeet.tenancy.usage import KINDS, shares
from swapmeet_registry import InvalidName

NOON = datetime(2026, 11, 22, 12, 0, 30, tzinfo=UTC)
DAY = timedelta(days=1)
BOSS = Caller(OPERATOR, "key-0", frozenset({"admin"}))
ACME = Caller("acme", "key-a", frozenset({"infer"}))
LEGAL = [("acme/legal", "acme")]


@pytest.fixture
def books(database: Database) -> Tenancy:
    books = Tenancy(database)
    for name in ("acme", "ben"):
        books.tenants.ensure(name)
    return books


def used(books: Tenancy, *by: Any, **whose: Any) -> list[dict[str, Any]]:
    """What the report says, without what is 0."""
    report = books.usage.report(NOON - 10 * DAY, NOON + 10 * DAY, by, **whose)
    return [{name: value for name, value in row.items() if value != 0} for row in report]


def test_tenants_are_made_once_and_changed(books: Tenancy) -> None:
    made = books.tenants.create("cara", {"weight": 2.0, "tokens_a_minute": 5}, BOSS)
    assert (made.weight, made.tokens_a_minute, made.requests_a_minute) == (2.0, 5, None)
    assert books.tenants.create("cara", {"weight": 2.0, "tokens_a_minute": 5}, BOSS).created_at == made.created_at
    with pytest.raises(Conflict, match="'cara' with other settings"):
        books.tenants.create("cara", {}, BOSS)
    books.tenants.change("cara", {"tokens_a_minute": None, "stored_bytes": 2**63 - 1}, BOSS, suspended=True)
    assert books.quotas.limits("cara") == Limits(stored_bytes=2**63 - 1)
    assert books.tenants.get("cara").suspended_at
    assert [row.name for row in books.tenants.page(limit=2)[0]] == ["acme", "ben"]
    assert [row.name for row in books.tenants.page("ben", 2)[0]] == ["cara"]
    actions = [(row.action, row.detail) for row in books.audit.page("cara")[0]]
    assert actions == [
        ("tenant.change", f"stored_bytes={2**63 - 1}, suspended=True, tokens_a_minute=none"),
        ("tenant.create", "tokens_a_minute=5, weight=2.0"),
    ]
    with pytest.raises(Forbidden):
        books.tenants.change(OPERATOR, {}, BOSS, suspended=True)
    for name in ("", "A", "a/b", "-a", "a" * 64, "a\0", "\ud800", "../x"):
        with pytest.raises(InvalidName, match="not a tenant's name"):
            books.tenants.create(name, {}, BOSS)
        with pytest.raises(NotFound):
            books.tenants.get(name)


def test_of_many_who_make_one_tenant_at_once_all_get_it_or_are_told_why(books: Tenancy) -> None:
    made, told = [], []

    def make(weight: float) -> None:
        try:
            made.append(books.tenants.create("cara", {"weight": weight}, BOSS).weight)
        except Conflict as error:
            told.append(str(error))

    threads = [threading.Thread(target=make, args=(float(1 + number % 2),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(told), len(set(made))) == (4, 4, 1)
    assert [row.action for row in books.audit.page("cara")[0]] == ["tenant.create"]


def test_of_many_who_rotate_one_key_at_once_one_does(books: Tenancy) -> None:
    old = books.keys.create("acme", ["infer"]).row.id
    made, told = [], []

    def rotate() -> None:
        try:
            made.append(books.keys.rotate("acme", old, DAY, BOSS).row.id)
        except Conflict as error:
            told.append(str(error))

    threads = [threading.Thread(target=rotate) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(told)) == (1, 5)
    assert made[0] in told[0]
    assert len(books.keys.page("acme")[0]) == 2


def test_amounts_of_one_source_replace_each_other(books: Tenancy, database: Database) -> None:
    def tell(amount: float, source: str = "ftjob-1/1", at: datetime = NOON) -> Callable[[Session], None]:
        return lambda session: books.usage.add(
            session, source=source, tenant="acme", kind="training_tokens", subject="ftjob-1", amount=amount, at=at
        )

    for each in (tell(100), tell(250.4), tell(250.4), tell(7, source="ftjob-1/2"), tell(1, at=NOON + DAY)):
        database.write(each)
    assert used(books) == [{"training_tokens": 258}]
    assert used(books, "day") == [
        {"day": "2026-11-22", "training_tokens": 257},
        {"day": "2026-11-23", "training_tokens": 1},
    ]


def test_the_ledger_writes_what_was_counted_whatever_fails_in_between(
    books: Tenancy, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [NOON]
    ledger = Ledger(database, lambda: clock[0])
    ledger.count(ACME, LEGAL, 10, 4)
    ledger.flush()
    ledger.count(ACME, LEGAL, 1, 1)
    with monkeypatch.context() as broken:
        broken.setattr(database, "write", lambda work: (_ for _ in ()).throw(DatabaseFailed("away")))
        with pytest.raises(DatabaseFailed):
            ledger.flush()
        clock[0] = NOON + timedelta(minutes=3)
        ledger.count(ACME, LEGAL, 100, 0)
    clock[0] = NOON  # set back: a minute that was written and forgotten is not begun again
    ledger.flush()
    ledger.count(ACME, LEGAL, 1000, 0)
    ledger.flush()
    ledger.flush()
    assert used(books) == [
        {"inference_requests": 4, "inference_prompt_tokens": 1111, "inference_output_tokens": 5},
    ]
    rows = database.read(lambda session: session.query(UsageRow).filter_by(kind="inference_prompt_tokens").all())
    assert sorted(row.amount for row in rows) == [11, 1100]


def test_the_ledger_forgets_what_is_over_and_written(database: Database) -> None:
    clock = [NOON]
    ledger = Ledger(database, lambda: clock[0])
    for minute in range(3):
        clock[0] = NOON + timedelta(minutes=minute)
        ledger.count(ACME, LEGAL, 1, 1)
        ledger.flush()
    assert len(ledger._amounts) == len(KINDS[:3]), "of the present minute alone"


def test_counting_and_writing_at_once_loses_nothing(books: Tenancy) -> None:
    done = threading.Event()

    def flush() -> None:
        while not done.is_set():
            books.ledger.flush()

    writers = [threading.Thread(target=flush) for _ in range(2)]
    counters = [
        threading.Thread(target=lambda: [books.ledger.count(ACME, LEGAL, 3, 2) for _ in range(500)]) for _ in range(3)
    ]
    for each in (*writers, *counters):
        each.start()
    for each in counters:
        each.join()
    done.set()
    for each in writers:
        each.join()
    books.ledger.flush()
    (row,) = books.usage.report(now() - DAY, now() + DAY)
    assert (row["inference_requests"], row["inference_prompt_tokens"], row["inference_output_tokens"]) == (
        1500,
        4500,
        3000,
    )


def test_usage_by_tenant_adapter_key_and_day_and_for_owners(books: Tenancy, database: Database) -> None:
    ledger = Ledger(database, lambda: NOON)
    ledger.count(ACME, LEGAL, 10, 1)
    ledger.count(Caller("ben", "key-b", frozenset()), [*LEGAL, ("ben/mine", "ben")], 5, 5)
    ledger.count(ACME, [("tiny", "")], 100, 10)
    ledger.flush()
    assert used(books, "tenant") == [
        {"tenant": "acme", "inference_requests": 2, "inference_prompt_tokens": 110, "inference_output_tokens": 11},
        {"tenant": "ben", "inference_requests": 1, "inference_prompt_tokens": 5, "inference_output_tokens": 5},
    ]
    assert used(books, "adapter", tenant="ben") == [
        {"adapter": "acme/legal", "inference_requests": 1, "inference_prompt_tokens": 3, "inference_output_tokens": 3},
        {"adapter": "ben/mine", "inference_prompt_tokens": 2, "inference_output_tokens": 2},
    ]
    assert used(books, "adapter", owner="acme") == [
        {"adapter": "acme/legal", "inference_requests": 2, "inference_prompt_tokens": 13, "inference_output_tokens": 4}
    ]
    assert [(row["key"], row["day"]) for row in used(books, "key", "day")] == [
        ("key-a", "2026-11-22"),
        ("key-b", "2026-11-22"),
    ]
    assert books.usage.report(NOON - DAY, NOON - DAY) == [dict.fromkeys(KINDS, 0)]
    assert books.usage.report(NOON - DAY, NOON - DAY, ["day"]) == []


def test_shares_sum_up() -> None:
    for amount in range(20):
        for among in range(1, 9):
            parts = list(shares(amount, among))
            assert sum(parts) == amount
            assert len(parts) == among
            assert max(parts) - min(parts) <= 1


def a_file(tenant: str, size: int, **more: Any) -> FileRow:
    return FileRow(
        id=f"file-{tenant}-{size}-{len(more)}", tenant=tenant, filename="x", purpose="fine-tune", bytes=size,
        sha256="", **more,
    )  # fmt: skip


def test_storage_is_measured_once_an_hour(books: Tenancy, database: Database) -> None:
    for row in (a_file("acme", 100), a_file("acme", 7), a_file("ben", 5), a_file("ben", 50, deleted_at=now())):
        database.write(lambda session, row=row: session.add(row))  # type: ignore[misc]
    for _ in range(2):
        books.usage.measure_storage()
    report = books.usage.report(now() - DAY, now() + DAY, ["tenant"])
    assert {row["tenant"]: row["stored_byte_hours"] for row in report} == {"acme": 107, "ben": 5}


def test_storage_has_a_quota_that_holds_when_many_store_at_once(books: Tenancy, database: Database) -> None:
    books.tenants.change("acme", {"stored_bytes": 1000}, BOSS)
    upload = UploadRow(
        id="upload-1", tenant="acme", filename="x", purpose="fine-tune", mime_type="", bytes=300,
        expires_at=now() + DAY,
    )  # fmt: skip
    database.write(lambda session: session.add(upload))
    stored, refused = [], []

    def store(number: int) -> None:
        def work(session: Session) -> None:
            books.quotas.require_storage(session, "acme", 100)
            session.add(FileRow(id=f"file-{number}", tenant="acme", filename="x", purpose="", bytes=100, sha256=""))

        try:
            database.write(work)
            stored.append(number)
        except QuotaExceeded as error:
            refused.append(str(error))

    threads = [threading.Thread(target=store, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stored) == 7
    told = "100 bytes more are over your quota: 1000 of 1000 bytes are stored (700 in files, 300 in uploads). Delete"
    assert refused[0].startswith(told)
    database.write(lambda session: books.quotas.require_storage(session, "ben", 2**60))
    with pytest.raises(NotFound):
        database.write(lambda session: books.quotas.require_storage(session, "nobody", 1))


def test_requests_refill_evenly() -> None:
    clock = [0.0]
    rates, limits = Rates(lambda: clock[0]), Limits(requests_a_minute=6)
    assert rates.take("acme", Limits()) == {}
    first = rates.take("acme", limits)
    assert first == {
        "x-ratelimit-limit-requests": "6",
        "x-ratelimit-remaining-requests": "5",
        "x-ratelimit-reset-requests": "10s",
    }
    for _ in range(5):
        rates.take("acme", limits)
    with pytest.raises(RateLimited, match="You may use 6 requests a minute, and have") as told:
        rates.take("acme", limits)
    assert told.value.headers["retry-after"] == "10"
    assert told.value.headers["x-ratelimit-remaining-requests"] == "0"
    assert told.value.headers["x-ratelimit-reset-requests"] == "1m0s"
    rates.take("ben", limits)
    clock[0] = 10
    rates.take("acme", limits)
    with pytest.raises(RateLimited):
        rates.take("acme", limits)
    clock[0] = 10_000
    assert rates.take("acme", limits)["x-ratelimit-remaining-requests"] == "5", "no more than a minute's is saved up"
    assert rates.take("acme", Limits(requests_a_minute=2))["x-ratelimit-remaining-requests"] == "1"


def test_tokens_are_counted_after_answers_and_debts_are_paid_by_time() -> None:
    clock = [0.0]
    rates, limits = Rates(lambda: clock[0]), Limits(tokens_a_minute=600, requests_a_minute=1000)
    for _ in range(3):
        rates.take("acme", limits)
    rates.spend("acme", limits, 900)
    with pytest.raises(RateLimited, match="600 tokens a minute") as told:
        rates.take("acme", limits)
    assert told.value.headers["retry-after"] == "31"
    assert told.value.headers["x-ratelimit-remaining-requests"] == "997", "who is refused has not spent a request"
    clock[0] = 30.1
    headers = rates.take("acme", limits)
    assert headers["x-ratelimit-remaining-tokens"] == "1"
    assert headers["x-ratelimit-reset-tokens"] == "59.9s"
    rates.spend("acme", Limits(), 10**9)
    clock[0] = 40
    rates.take("acme", limits)


@given(
    limit=st.integers(1, 10_000),
    pauses=st.lists(st.floats(0, 200, allow_nan=False), max_size=60),
    tokens=st.integers(0, 5_000),
)
def test_whatever_comes_when_no_more_pass_than_the_limit_says(limit: int, pauses: list[float], tokens: int) -> None:
    clock, passed, spent = [0.0], 0, 0
    rates, limits = Rates(lambda: clock[0]), Limits(requests_a_minute=limit, tokens_a_minute=1000)
    for pause in pauses:
        clock[0] += pause
        try:
            rates.take("acme", limits)
        except RateLimited as error:
            clock[0] += int(error.headers["retry-after"])
            rates.take("acme", limits)  # what was promised is kept
        passed, spent = passed + 1, spent + tokens
        rates.spend("acme", limits, tokens)
        assert passed <= limit * (1 + clock[0] / 60) + 1e-3
        assert spent <= 1000 * (1 + clock[0] / 60) + tokens


def test_a_limit_of_nothing_lets_nothing_pass() -> None:
    for limits in (Limits(requests_a_minute=0), Limits(tokens_a_minute=0)):
        with pytest.raises(RateLimited) as told:
            Rates().take("acme", limits)
        assert told.value.headers["retry-after"] == "60"


def test_tenants_that_were_quiet_are_forgotten_but_not_their_debts() -> None:
    clock = [0.0]
    rates, limits = Rates(lambda: clock[0]), Limits(tokens_a_minute=1)
    rates.take("debtor", limits)
    rates.spend("debtor", limits, 100)
    for number in range(MOST - 1):
        rates.take(f"t{number}", limits)
    clock[0] = 61
    rates.take("one more", limits)
    assert len(rates._buckets) == 2
    with pytest.raises(RateLimited):
        rates.take("debtor", limits)


def test_the_audit_log_is_paged_and_each_tenant_s_own(books: Tenancy) -> None:
    def enter(session: Session) -> None:
        for number in range(5):
            note(session, ACME, "file.delete", f"file-{number}")
        note(session, BOSS, "tenant.change", "acme", tenant="acme", detail="x" * 5000)

    books.database.write(enter)
    ben = Caller("ben", "key-b", frozenset(), request="r" * 200)
    with pytest.raises(Conflict), books.audit.noting(ben, "alias.move", "s\0" * 500):
        raise Conflict("It points elsewhere.")
    first, more = books.audit.page("acme", limit=4)
    rest, last = books.audit.page("acme", first[-1].id, 4)
    assert (more, last) == (True, False)
    assert [row.subject for row in first + rest] == ["acme", "file-4", "file-3", "file-2", "file-1", "file-0"]
    assert (first[0].actor, first[0].tenant, first[0].key) == (OPERATOR, "acme", "key-0")
    everything = books.audit.page(None)[0]
    assert len(everything) == 8
    assert (everything[0].request, everything[0].outcome) == ("r" * 80, "conflict")
    assert [row.action for row in books.audit.page(None, action="tenant.change")[0]] == ["tenant.change"]


def test_what_is_done_and_its_entry_are_one_transaction(books: Tenancy, database: Database) -> None:
    def fail(session: Session) -> None:
        note(session, ACME, "job.create", "ftjob-1")
        session.flush()
        raise KeyError("own")

    with pytest.raises(KeyError):
        database.write(fail)
    assert books.audit.page(None)[0] == []


def test_a_flood_of_refusals_is_one_entry(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    audit = Audit(database)
    for _ in range(100):
        audit.refused(ACME, "POST /v1/keys")
    audit.refused(ACME, "GET /v1/audit")
    with monkeypatch.context() as broken:
        broken.setattr(database, "write", lambda work: (_ for _ in ()).throw(DatabaseFailed("away")))
        with pytest.raises(DatabaseFailed):
            audit.flush()
    for _ in range(2):
        audit.flush()
    rows: list[AuditRow] = audit.page("acme")[0]
    assert sorted((row.action, row.outcome, row.detail) for row in rows) == [
        ("GET /v1/audit", "refused", ""),
        ("POST /v1/keys", "refused", "100 times"),
    ]


def test_a_key_that_was_sent_as_something_else_is_not_kept(database: Database) -> None:
    key = "sm-" + "aB3_-" * 8
    caller = Caller("acme", "key-a", frozenset(), request=key)
    database.write(lambda session: note(session, caller, "x", f"my {key}", detail=key))
    (row,) = Audit(database).page(None)[0]
    assert key not in f"{row.subject} {row.request} {row.detail}"
