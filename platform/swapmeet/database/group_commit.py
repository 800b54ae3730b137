"""One commit for all who wait to write: SQLite lets one write at a time, and each commit waits for the disk.

Whoever comes while nobody writes does, alone. Those who come meanwhile stand in line; the first of them then does the
work of all, each within a savepoint, and commits once. So nobody sleeps in turns for SQLite's lock, nobody is
overtaken, and two hundred writers wait for the disk a few times instead of two hundred.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

T = TypeVar("T")
MOST = 64
"""Works of one commit."""


@dataclass(slots=True)
class _Entry:
    """Somebody's work, and what came of it once it is done."""

    work: Callable[[Session], Any]
    turn: threading.Event = field(default_factory=threading.Event)
    """Set when it is done; or before, if whoever waits for it is to do the work of those in line."""
    done: bool = False
    found: Any = None
    error: BaseException | None = None

    def end(self, found: Any = None, error: BaseException | None = None) -> None:
        self.done, self.found, self.error = True, found, error

    def outcome(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.found


class GroupCommit:
    """Writes of one process on one engine, whose transactions must take the lock as they begin. For any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._line: list[_Entry] = []
        self._busy = False
        self._lock = threading.Lock()

    def write(self, work: Callable[[Session], T]) -> T:
        """What `work` returns, once that is durable; it may be called twice, the first time without effect.

        Raises:
            BaseException: what the work raised, or the database; nothing of it took place.
        """
        entry = _Entry(work)
        with self._lock:
            self._line.append(entry)
            waits, self._busy = self._busy, True
        if waits:
            entry.turn.wait()
        if not entry.done:
            self._serve()
        found: T = entry.outcome()
        return found

    def _serve(self) -> None:
        """Do the work of those in line, of whom the first is the caller, and hand on to who came meanwhile."""
        with self._lock:
            group, self._line = self._line[:MOST], self._line[MOST:]
        try:
            self._together(group) if len(group) > 1 else self._alone(group[0])
        finally:
            with self._lock:
                successor = self._line[0] if self._line else None
                self._busy = successor is not None
            for each in group:
                if not each.done:
                    each.end(error=RuntimeError("the thread that was to write for others was ended"))
                each.turn.set()
            if successor:
                successor.turn.set()

    def _together(self, group: list[_Entry]) -> None:
        """All in one transaction. Where the database failed, perhaps undoing all of it, each has one of its own."""
        outcomes = []
        try:
            with self._engine.connect() as connection, connection.begin():
                for each in group:
                    outcomes.append(self._in_savepoint(connection, each.work))
        except SQLAlchemyError:
            for each in group:
                self._alone(each)
            return
        for each, (found, error) in zip(group, outcomes, strict=True):
            each.end(found, error)

    def _in_savepoint(self, connection: Any, work: Callable[[Session], Any]) -> tuple[Any, Exception | None]:
        """What came of one; only errors of the database are raised."""
        try:
            with (
                Session(connection, expire_on_commit=False, join_transaction_mode="create_savepoint") as session,
                session.begin(),
            ):
                return work(session), None
        except SQLAlchemyError:
            raise
        except Exception as error:
            return None, error

    def _alone(self, entry: _Entry) -> None:
        try:
            with Session(self._engine, expire_on_commit=False) as session, session.begin():
                found = entry.work(session)
        except Exception as error:
            entry.end(error=error)
        else:
            entry.end(found)
