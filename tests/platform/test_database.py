"""Transactions that last, are alone, and are tried again; and how old databases become new ones."""

import pickle
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.migrations import upgrade
from swapmeet.database.tables import KeyRow, Table, TenantRow
from swapmeet.errors import DatabaseFailed
from swapmeet_registry.index.tables import METADATA, WORDS


def _add(name: str, session: Session) -> None:
    session.add(TenantRow(name=name))


def test_the_migrations_make_just_the_tables_that_the_code_knows(database: Database) -> None:
    with database.engine.connect() as connection:
        # The index's words are a table in its database's own way; SQLite keeps them in several.
        own = {
            "compare_type": True,
            "include_name": lambda name, kind, _: kind != "table" or not name.startswith(WORDS),
        }
        context = MigrationContext.configure(connection, opts=own)
        known: Any = [Table.metadata, METADATA]
        assert compare_metadata(context, known) == []
    upgrade(database)  # once more changes nothing


def test_keys_of_the_first_version_stay_valid(tmp_path: Path) -> None:
    path = tmp_path / "swapmeet.db"
    with sqlite3.connect(path) as old:
        old.execute(
            "CREATE TABLE api_keys (digest VARCHAR(64) PRIMARY KEY, tenant VARCHAR(64) NOT NULL,"
            " scope VARCHAR(16) NOT NULL, created_at DATETIME NOT NULL)"
        )
        old.execute("INSERT INTO api_keys VALUES ('ab12', 'admin', 'admin', '2026-11-01 10:00:00.000000')")
    database = Database(f"sqlite:///{path}")
    upgrade(database)
    key = database.read(lambda session: session.get_one(KeyRow, "ab12"))
    assert (key.tenant, key.scopes, key.created_at.isoformat()) == ("admin", ["admin"], "2026-11-01T10:00:00+00:00")
    assert database.read(lambda session: session.get_one(TenantRow, "admin")).weight == 1.0
    database.close()


def test_many_processes_may_migrate_at_once(database_url: str) -> None:
    failed: list[Exception] = []

    def start() -> None:
        try:
            database = Database(database_url)
            upgrade(database)
            database.close()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_database_of_a_newer_version_is_refused(database: Database) -> None:
    database.write(lambda session: session.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(DatabaseFailed, match="newest version"):
        upgrade(database)


def test_rows_are_locked_by_whoever_changes_them(database: Database) -> None:
    database.write(lambda session: _add("acme", session))

    def raise_weight(session: Session) -> None:
        session.get_one(TenantRow, "acme", with_for_update=True).weight += 1

    threads = [threading.Thread(target=lambda: [database.write(raise_weight) for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert database.read(lambda session: session.get_one(TenantRow, "acme")).weight == 41


def test_nothing_of_a_failed_transaction_stays(database: Database) -> None:
    def fail(session: Session) -> None:
        _add("acme", session)
        session.flush()
        raise KeyError("own")

    with pytest.raises(KeyError):
        database.write(fail)
    assert database.read(lambda session: session.scalar(select(func.count()).select_from(TenantRow))) == 0


def test_a_lost_connection_is_tried_again(postgres_url: str) -> None:
    database = Database(postgres_url)
    upgrade(database)
    calls = []

    def once_cut(session: Session) -> None:
        calls.append(session)
        _add("acme", session)
        session.flush()
        if len(calls) == 1:
            session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    database.write(once_cut)
    assert len(calls) == 2
    assert database.read(lambda session: session.scalar(select(func.count()).select_from(TenantRow))) == 1
    database.close()


def test_errors_name_no_password() -> None:
    database = Database("postgresql://me:hunter2@127.0.0.1:1/none?connect_timeout=1")
    with pytest.raises(DatabaseFailed) as raised:
        database.read(lambda session: session.execute(text("SELECT 1")))
    database.close()
    assert "hunter2" not in str(raised.value)
    assert isinstance(raised.value.__cause__, OperationalError)


def test_a_copy_connects_anew(database: Database) -> None:
    database.write(lambda session: _add("acme", session))
    copy: Database = pickle.loads(pickle.dumps(database))
    assert copy.read(lambda session: session.get_one(TenantRow, "acme")).name == "acme"
    copy.close()
