"""API keys: random, kept as hashes, checked on every call. Nothing is open without one."""

import hashlib
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import DateTime, String, create_engine, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from swapmeet.errors import DatabaseFailed

PREFIX = "sm-"


class Table(DeclarativeBase):
    """Base of the platform's tables."""


class KeyRow(Table):
    """One key: its SHA-256, whose it is and what it may do. The key itself is never stored."""

    __tablename__ = "api_keys"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64))
    scope: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose a key is, and what it may do."""

    tenant: str
    scope: str


KNOWN_SECONDS = 1.0
"""How long a key that was found is not looked up again: so much later at most, a change of it takes effect."""
MOST_KNOWN = 10_000


class Keys:
    """The keys in one database, by SQLAlchemy URL."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: OrderedDict[str, tuple[Holder, float]] = OrderedDict()
        with _database_errors():
            self.engine = create_engine(url)
            Table.metadata.create_all(self.engine)

    def create(self, tenant: str, scope: str) -> str:
        """A new key, to be shown once."""
        key = PREFIX + secrets.token_urlsafe(32)
        row = KeyRow(digest=_digest(key), tenant=tenant, scope=scope, created_at=datetime.now(UTC))
        with _database_errors(), Session(self.engine) as session, session.begin():
            session.add(row)
        return key

    def known_holder_of(self, key: str) -> Holder | None:
        """What `holder_of` found within the last second, without asking the database."""
        holder, until = self._known.get(_digest(key), (None, 0.0))
        return holder if self._clock() < until else None

    def holder_of(self, key: str) -> Holder | None:
        """Whose a key is and what it may do, or None where there is no such key."""
        digest = _digest(key)
        with _database_errors(), Session(self.engine) as session:
            row = session.scalar(select(KeyRow).where(KeyRow.digest == digest))
        if row is None:
            return None
        holder = Holder(row.tenant, row.scope)
        self._known[digest] = holder, self._clock() + KNOWN_SECONDS
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        return holder


def admin_key(keys: Keys, home: Path) -> str:
    """The operator's key, made at the first start and kept in `HOME/admin.key`, readable by its owner only."""
    path = home / "admin.key"
    if path.is_file():
        key = path.read_text().strip()
        if keys.holder_of(key) == Holder("admin", "admin"):
            return key
    key = keys.create(tenant="admin", scope="admin")
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.touch(mode=0o600)
    partial.write_text(key + "\n")
    partial.replace(path)
    return key


@contextmanager
def _database_errors() -> Iterator[None]:
    """Map SQLAlchemy's errors, whose texts may hold the URL's password, to ours."""
    try:
        yield
    except (SQLAlchemyError, ImportError) as error:
        raise DatabaseFailed(
            f"The database can not be used ({type(error).__name__}). Check SWAPMEET_DATABASE and that it is up."
        ) from error


def _digest(key: str) -> str:
    # A key has 256 random bits, so a fast hash without salt is as good as a slow one.
    return hashlib.sha256(key.encode()).hexdigest()
