"""Transactions on one database, by SQLAlchemy URL. All state of the platform changes in them, or not at all."""

import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from swapmeet.database.group_commit import GroupCommit
from swapmeet.errors import DatabaseFailed

T = TypeVar("T")

BUSY_SECONDS = 30.0
"""How long SQLite waits for another's write before it gives up."""
CONNECTIONS = {"sqlite": 48, "postgresql": 16}
"""Kept open by one process: making one costs more than what is asked on it. A PostgreSQL serves a hundred in all."""
ATTEMPTS = 5
FIRST_PAUSE = 0.05
"""Seconds before the second attempt; each pause is twice the last."""
AWAY = {
    "connect_timeout": "10",
    "tcp_user_timeout": "15000",  # milliseconds
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
}
"""How soon libpq takes a PostgreSQL that is silent, as when its machine is gone, for lost; a URL may say otherwise."""
AGAIN = {"40001", "40P01", "55P03"}
"""PostgreSQL's states of a transaction that may be tried again: serialization, deadlock, lock not available."""


class Database:
    """One database. Picklable: a copy connects anew.

    On SQLite one transaction writes at a time, readers never wait, and those who wait to write share a commit; on
    PostgreSQL rows that a transaction reads in order to change are locked by `with_for_update()`, which SQLite, needing
    no such lock, ignores.

    Raises:
        DatabaseFailed: it can not be used; the message names neither user nor password.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        with database_errors():
            self.engine = _engine(url)
        writing = self.engine.execution_options(swapmeet_writes=True)
        self._group = GroupCommit(writing) if self.engine.dialect.name == "sqlite" else None
        self._writing = writing

    def __reduce__(self) -> tuple[Any, ...]:
        return Database, (self.url,)

    def read(self, work: Callable[[Session], T]) -> T:
        """What `work` finds; it must change nothing. It is called again after a lost connection."""
        return self._attempt(partial(_transaction, self.engine, work))

    def write(self, work: Callable[[Session], T]) -> T:
        """What `work` returns, once all that it did is durable.

        It is called again, with a fresh session, where the database says that the transaction did not take place and
        may be repeated; where a connection breaks in the very commit, nobody knows, so `work` must bear being done
        twice: insert under ids that its caller chose, and change only what is in the state that it expects.
        """
        if self._group is not None:
            return self._attempt(partial(self._group.write, work))
        return self._attempt(partial(_transaction, self._writing, work))

    def close(self) -> None:
        """Let go of its connections; it may be used again."""
        self.engine.dispose()

    def _attempt(self, transaction: Callable[[], T]) -> T:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return transaction()
            except (SQLAlchemyError, ImportError) as error:
                if attempt == ATTEMPTS or not _passes(error):
                    raise _failed(error) from error
                time.sleep(FIRST_PAUSE * 2 ** (attempt - 1) * random.uniform(0.5, 1))  # noqa: S311 - no secret
        raise AssertionError("unreachable: the last attempt returns or raises")


def _transaction(engine: Engine, work: Callable[[Session], T]) -> T:
    with Session(engine, expire_on_commit=False) as session, session.begin():
        return work(session)


@contextmanager
def database_errors() -> Iterator[None]:
    """Map SQLAlchemy's errors, whose texts may hold the URL's password, to ours."""
    try:
        yield
    except (SQLAlchemyError, ImportError) as error:
        raise _failed(error) from error


def _failed(error: Exception) -> DatabaseFailed:
    return DatabaseFailed(
        f"The database can not be used ({type(error).__name__}). Check SWAPMEET_DATABASE and that it is up."
    )


def _passes(error: Exception) -> bool:
    """Whether the same may succeed a moment later."""
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated or getattr(error.orig, "sqlstate", None) in AGAIN:
        return True
    return isinstance(error, OperationalError) and not isinstance(error.orig, sqlite3.Error)


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    pool: dict[str, Any] = {"pool_size": CONNECTIONS.get(parsed.get_backend_name(), 16), "pool_use_lifo": True}
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(parsed, connect_args={"timeout": BUSY_SECONDS}, **pool)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    # A connection that broke is noticed where it is used, which renews all of them, and the attempt is repeated.
    silent = {name: value for name, value in AWAY.items() if name not in parsed.query}
    return create_engine(parsed, connect_args=silent, **pool)


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # Python's own BEGIN comes too late for reads, and takes no write lock
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    """A transaction that writes takes the lock at once: one that took it later could only fail."""
    writes = connection.get_execution_options().get("swapmeet_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
