"""Writers that wait for SQLite share a commit, and none of them notices but by the time it takes."""

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.migrations import upgrade
from swapmeet.database.tables import TenantRow
from swapmeet.errors import DatabaseFailed, NotFound

WRITERS = 24


@pytest.fixture
def sqlite(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path}/swapmeet.db")
    upgrade(database)
    return database


def add(name: str) -> Callable[[Session], str]:
    def work(session: Session) -> str:
        session.add(TenantRow(name=name))
        session.flush()
        return name

    return work


def names(database: Database) -> set[str]:
    return set(database.read(lambda session: session.scalars(select(TenantRow.name)).all()))


def together(database: Database, works: list[Callable[[Session], Any]]) -> list[Any]:
    """What each came to, when all stood in line behind one that writes."""
    writing, go = threading.Event(), threading.Event()
    outcomes: list[Any] = [None] * len(works)

    def first(_: Session) -> None:
        writing.set()
        assert go.wait(30)

    def one(number: int) -> None:
        try:
            outcomes[number] = database.write(works[number])
        except Exception as error:
            outcomes[number] = error

    threads = [threading.Thread(target=database.write, args=(first,))]
    threads[0].start()
    assert writing.wait(30)
    threads += [threading.Thread(target=one, args=(number,)) for number in range(len(works))]
    for thread in threads[1:]:
        thread.start()
    group = database._group
    assert group
    while len(group._line) < len(works):
        pass
    go.set()
    for thread in threads:
        thread.join(60)
    return outcomes


def test_those_in_line_share_a_commit(sqlite: Database) -> None:
    commits = []
    event.listen(sqlite.engine, "commit", commits.append)
    wanted = [f"tenant-{number}" for number in range(WRITERS)]
    assert together(sqlite, [add(name) for name in wanted]) == wanted
    assert names(sqlite) == set(wanted)
    assert len(commits) == 2  # of all of them, and of who reads; the first wrote nothing


def test_who_fails_takes_nobody_along(sqlite: Database) -> None:
    def refuse(session: Session) -> None:
        add("half")(session)
        raise NotFound("no")

    def break_(session: Session) -> None:
        add("a")(session)
        add("a")(session)

    outcomes = together(sqlite, [add("a"), refuse, add("b"), refuse])
    assert [str(each) for each in outcomes] == ["a", "no", "b", "no"]
    assert names(sqlite) == {"a", "b"}
    outcomes = together(sqlite, [add("c"), break_, add("d")])
    assert (outcomes[0], outcomes[2]) == ("c", "d")
    assert isinstance(outcomes[1], DatabaseFailed)
    assert names(sqlite) == {"a", "b", "c", "d"}
    assert sqlite.write(add("e")) == "e"


def test_what_undoes_the_whole_transaction_undoes_it_for_none_but_its_cause(sqlite: Database) -> None:
    """A full disk makes SQLite roll back all at once, in the middle of a group."""

    def fill(session: Session) -> None:
        session.connection().connection.driver_connection.rollback()  # type: ignore[union-attr]
        raise_full(session)

    def raise_full(session: Session) -> None:
        def fail(*_: Any) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        event.listen(session.connection(), "before_cursor_execute", fail)
        session.scalar(select(TenantRow.name))

    outcomes = together(sqlite, [add("a"), fill, add("b")])
    assert (outcomes[0], outcomes[2]) == ("a", "b")
    assert isinstance(outcomes[1], Exception)
    assert names(sqlite) == {"a", "b"}


def test_many_writers_lose_nothing(sqlite: Database) -> None:
    def count(session: Session) -> None:
        row = session.get_one(TenantRow, "sum")
        row.stored_bytes = (row.stored_bytes or 0) + 1

    sqlite.write(add("sum"))
    others = Database(sqlite.url)  # another process's, which waits for SQLite's own lock
    threads = [
        threading.Thread(target=lambda each=each: [each.write(count) for _ in range(10)])  # type: ignore[misc]
        for each in (sqlite, others)
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sqlite.read(lambda session: session.get_one(TenantRow, "sum")).stored_bytes == 160
    others.close()
