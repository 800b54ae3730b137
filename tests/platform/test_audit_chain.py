"""The audit log as a chain: exact under many writers, with an anchor where it was forgotten, checked offline."""

import json
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import text, update
from sqlalchemy.orm import Session

from swapmeet.audit_export import START, verify
from swapmeet.database import Database
from swapmeet.database.migrations import _config, upgrade
from swapmeet.database.tables import AuditRow
from swapmeet.database.tables.base import now
from swapmeet.errors import AuditBroken, Conflict, DatabaseFailed
from swapmeet.tenancy import Caller
from swapmeet.tenancy.audit import Audit, Operation, note

ACME, BETA = (Caller(tenant, f"key-{tenant}", frozenset({"admin"})) for tenant in ("acme", "beta"))


def enter(database: Database, caller: Caller, action: str, subject: str, detail: str = "") -> None:
    database.write(lambda session: note(session, caller, action, subject, detail=detail))


def lines_of(database: Database, tenant: str = "acme") -> list[str]:
    return [line.decode() for line in Audit(database).export(tenant)]


def test_entries_follow_each_other_whoever_writes_at_once(database: Database) -> None:
    failed = list[Exception]()

    def write(number: int) -> None:
        def both(session: Session) -> None:  # in either order
            for caller in (ACME, BETA)[:: 1 if number % 2 else -1]:
                note(session, caller, "key.create", f"key-{number}")

        try:
            for step in range(8):
                enter(database, ACME, "model.delete", f"ä/{number}.{step}")
                database.write(both)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    (end,) = verify(lines_of(database))
    assert (end.tenant, end.sequence) == ("acme", 96)
    assert [link.sequence for link in verify([*lines_of(database), *lines_of(database, "beta")])] == [96, 48]


def test_what_did_not_take_place_leaves_no_gap(database: Database) -> None:
    def fail(session: Session) -> None:
        note(session, ACME, "key.create", "key-1")
        raise KeyError("own")

    enter(database, ACME, "a", "1")
    with pytest.raises(KeyError):
        database.write(fail)
    enter(database, ACME, "a", "2")
    assert verify(lines_of(database))[0].sequence == 2


def test_a_log_without_entries_is_whole(database: Database) -> None:
    assert verify(lines_of(database, "nobody"))[0].hash == START


def _change(lines: list[str], number: int, **fields: Any) -> list[str]:
    changed = json.dumps(json.loads(lines[number]) | fields)
    return [*lines[:number], changed, *lines[number + 1 :]]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda lines: _change(lines, 2, outcome="refused"),
        lambda lines: _change(lines, 2, at="2026-01-01T00:00:00.000000Z"),
        lambda lines: _change(lines, 2, hash="0" * 64),
        lambda lines: _change(lines, 2, more=1),
        lambda lines: _change(lines, 0, after={"sequence": 0, "hash": "1" * 64}),
        lambda lines: _change(lines, 0, after={}),
        lambda lines: _change(lines, 2, detail="\ud800"),
        lambda lines: [*lines[:2], lines[2].replace('"sequence":2', '"sequence":1e999'), *lines[3:]],
        lambda lines: [lines[0].replace('"sequence":0', '"sequence":1e999'), *lines[1:]],
        lambda lines: [*lines[:2], *lines[3:]],
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: lines[:-1],
        lambda lines: lines[1:],
        lambda lines: [*lines, lines[-1]],
        lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]],
        lambda lines: [*lines, "[]"],
        lambda lines: [],
    ],
)
def test_whatever_was_done_to_an_export_is_seen(spoil: Callable[[list[str]], list[str]], database: Database) -> None:
    for number in range(4):
        enter(database, ACME, "key.create", f"key-{number}", detail='a "b"\n')
    lines = lines_of(database)
    noted = json.loads(lines[2])["hash"]
    assert verify(lines, contains=noted)[0].sequence == 4
    with pytest.raises(AuditBroken, match="No entry has the hash"):
        verify(lines, contains="f" * 64)
    with pytest.raises(AuditBroken):
        verify(spoil(lines))


def test_what_was_changed_in_the_database_is_seen(database: Database) -> None:
    for number in range(3):
        enter(database, ACME, "key.create", f"key-{number}")
    database.write(lambda session: session.execute(update(AuditRow).where(AuditRow.sequence == 2).values(key="key-x")))
    with pytest.raises(AuditBroken, match="entry 2 of acme's log was changed"):
        verify(lines_of(database))


def test_what_was_begun_and_did_not_end_is_named(database: Database) -> None:
    audit = Audit(database)
    with audit.noting(ACME, "alias.move", "acme/legal:prod"):
        assert [each["subject"] for each in verify(lines_of(database))[0].unended] == ["acme/legal:prod"]
    with pytest.raises(Conflict), audit.noting(ACME, "alias.move", "acme/legal:prod"):
        raise Conflict("It points elsewhere.")
    assert verify(lines_of(database))[0].unended == ()

    def again(outcome: str) -> None:
        publish = Operation(ACME, "adapter.publish", f"acme/{outcome}", "acme", "", "publish-1")
        database.write(lambda session: publish.end(session, outcome))

    for outcome in ("begun", "begun", "store_failed"):
        again(outcome)
    (unended,) = verify(lines_of(database))[0].unended
    assert (unended["sequence"], unended["operation"]) == (6, "publish-1"), "one of two ended"
    for outcome in ("begun", "done"):
        again(outcome)
    assert verify(lines_of(database))[0].unended == (), "what was done at last was done"
    for outcome in ("begun", "begun", "expired"):
        again(outcome)
    assert verify(lines_of(database))[0].unended == (), "nobody tries again what is expired"
    lines = lines_of(database)
    for number in range(1, len(lines)):
        for spoilt in (
            [*lines[:number], *lines[number + 1 :]],
            [*lines[: number - 1], *lines[number - 1 : number + 1][::-1], *lines[number + 1 :]],
        ):
            with pytest.raises(AuditBroken):
                verify(spoilt)


def test_its_end_is_noted_once_where_a_transaction_of_the_block_notes_it(database: Database) -> None:
    audit = Audit(database)
    with audit.noting(ACME, "adapter.publish", "acme/legal", operation="publish-1") as doing:
        doing.subject = "acme/legal:1"
        database.write(doing.done)

    def fail(session: Session) -> None:
        doing.done(session)
        raise Conflict("too late")

    with pytest.raises(Conflict), audit.noting(ACME, "adapter.publish", "acme/legal") as doing:
        database.write(fail)
    rows = audit.page("acme")[0][::-1]
    assert [(row.subject, row.outcome) for row in rows] == [
        ("acme/legal", "begun"),
        ("acme/legal:1", "done"),
        ("acme/legal", "begun"),
        ("acme/legal", "conflict"),
    ]


def test_what_can_not_be_noted_is_not_begun(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_: Any) -> None:
        raise DatabaseFailed("away")

    monkeypatch.setattr(database, "write", away)
    with pytest.raises(DatabaseFailed), Audit(database).noting(ACME, "alias.move", "acme/legal:prod"):
        raise AssertionError("it was begun")


def test_who_reads_an_export_slowly_holds_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swapmeet.tenancy.audit_chain.AT_ONCE", 2)
    for number in range(7):
        enter(database, ACME, "key.create", f"key-{number}")
    lines = list[str]()
    for line in Audit(database).export("acme"):
        lines.append(line.decode())
        assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        enter(database, ACME, "key.revoke", "key-0")
    assert verify(lines)[0].sequence == 7, "what came since it began is the next one's"
    export = Audit(database).export("acme")
    next(export)
    Audit(database).forget(now() + timedelta(days=1))
    with pytest.raises(Conflict, match="Export it again"):
        next(export)


def test_what_is_forgotten_leaves_an_anchor(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swapmeet.tenancy.audit_chain.AT_ONCE", 3)
    audit = Audit(database)
    for number in range(10):
        enter(database, ACME, "key.create", f"key-{number}")
        enter(database, BETA, "key.create", f"key-{number}")
    before = verify(lines_of(database))[0]

    def age(session: Session) -> None:
        old = update(AuditRow).where(AuditRow.tenant == "acme", AuditRow.sequence <= 7)
        session.execute(old.values(at=now() - timedelta(days=9)))

    hashes = [json.loads(line)["hash"] for line in lines_of(database)[1:]]
    database.write(age)
    audit.forget(now() - timedelta(days=8))
    lines = lines_of(database)
    assert json.loads(lines[0])["after"] == {"sequence": 7, "hash": hashes[6]}
    assert verify(lines, contains=hashes[6]) == [before]
    assert len(lines) == 4
    assert len(lines_of(database, "beta")) == 11
    audit.forget(now() + timedelta(days=1))
    assert verify(lines_of(database)) == [before]
    enter(database, ACME, "key.create", "key-new")
    assert verify(lines_of(database), contains=before.hash)[0].sequence == 11


def test_what_stood_in_an_older_database_is_chained(database_url: str) -> None:
    database = Database(database_url)
    with database.engine.execution_options(swapmeet_writes=True).begin() as connection:
        command.upgrade(_config(connection), "0002")
        insert = text(
            "INSERT INTO audit (at, tenant, actor, key, action, subject, outcome, request, detail) VALUES"
            " (:at, :tenant, 'admin', '', 'key.create', 'ä', 'done', '', '')"
        )
        moments = [datetime(2026, 11, day, 10, 0, 0, 120 + day, UTC) for day in range(1, 8)]
        zone = "" if connection.dialect.name == "sqlite" else "+00:00"
        rows = [
            {"at": at.strftime("%Y-%m-%d %H:%M:%S.%f") + zone, "tenant": ("acme", "beta")[at.day % 2]} for at in moments
        ]
        connection.execute(insert, rows)
    upgrade(database)
    assert [verify(lines_of(database, tenant))[0].sequence for tenant in ("acme", "beta")] == [3, 4]
    enter(database, ACME, "key.create", "key-1")
    assert verify(lines_of(database))[0].sequence == 4
    database.close()


def test_a_log_is_exported_and_checked_by_commands(
    platform: Any, command_line: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    platform.add("acme")
    platform.do("acme", "POST", "keys", json={"scopes": ["infer"]})
    exported = platform.ask("acme", "GET", "/v1/audit/export")
    file = tmp_path / "audit.jsonl"
    file.write_bytes(exported.content)
    assert command_line("audit", "verify", file).out.startswith("acme: whole up to entry 1, ")
    told = json.loads(command_line("audit", "verify", file, "--json").out)
    assert told["logs"][0]["hash"] == platform.do("acme", "GET", "audit")["data"][0]["hash"]
    file.write_text(file.read_text().replace("key.create", "key.forged"))
    ended = command_line("audit", "verify", file)
    assert ended.code == 1
    assert "entry 1 of acme's log was changed" in ended.err
    doing = Operation(ACME, "version.yank", "acme/legal:1", "acme", "", "op-1")
    platform.tenancy.database.write(lambda session: doing.end(session, "begun"))
    file.write_bytes(platform.ask("acme", "GET", "/v1/audit/export").content)
    assert "version.yank acme/legal:1 was begun and has not ended" in command_line("audit", "verify", file).out
    (log,) = json.loads(command_line("audit", "verify", file, "--json").out)["logs"]
    assert [each["operation"] for each in log["unended"]] == ["op-1"]
    platform.add("beta", "admin")
    assert platform.ask("beta", "GET", "/v1/audit/export?tenant=acme").status_code == 404
    assert b'"tenant":"acme"' in platform.ask("admin", "GET", "/v1/audit/export?tenant=acme").content
    assert platform.ask("beta", "GET", "/v1/audit/export").content.count(b"\n") == 1


def test_a_log_that_breaks_off_leaves_no_file(
    command_line: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket() as nobody:  # who does not listen
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("SWAPMEET_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setenv("SWAPMEET_API_KEY", "sm-any")
        for _ in range(2):
            ended = command_line("audit", "export", tmp_path / "log")
            assert (ended.code, "exists" in ended.err) == (1, False)
    assert list(tmp_path.glob("log*")) == []
