"""Connections to the index's database, and its errors as ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from swapmeet_registry.errors import IndexFailed, InvalidName

LOCK = 0x5357_4958
"""PostgreSQL's advisory lock of whoever writes the index."""
BUSY_SECONDS = 60
CACHE_KIB = 64 << 10
MAPPED = 1 << 30
WRITES = "swapmeet_writes"
"""The option of a transaction that is going to write, as the platform's database has it too."""


def make_engine(url: str) -> Engine:
    """An engine for `sqlite:///FILE` or `postgresql://…`.

    Raises:
        IndexFailed: the driver is not installed.
        InvalidName: the URL is of no such kind.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InvalidName("The index's database must be sqlite:///FILE or postgresql://USER@HOST/NAME.") from None
    with index_errors():
        if parsed.get_backend_name() == "sqlite":
            engine = create_engine(parsed, connect_args={"timeout": BUSY_SECONDS})
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        return create_engine(parsed, pool_pre_ping=True, connect_args={"connect_timeout": 10})


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees one state."""
    with index_errors(), engine.connect() as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that nobody else writes the index beside."""
    with index_errors(), engine.execution_options(**{WRITES: True}).begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        yield connection


@contextmanager
def index_errors() -> Iterator[None]:
    """Map SQLAlchemy's errors, whose texts may hold a password, to ours."""
    try:
        yield
    except (SQLAlchemyError, ImportError) as error:
        raise IndexFailed(
            f"The search index can not be used ({type(error).__name__}). Check that its database is up; "
            "an index that is damaged may be deleted, for it is made again."
        ) from error


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # as the platform's database: Python's own BEGIN comes too late for reads
    # What a power failure loses of the index is found again; that the file stays whole is seen to by the log.
    for pragma in (
        "journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", f"cache_size=-{CACHE_KIB}",
        f"mmap_size={MAPPED}",
    ):  # fmt: skip
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
