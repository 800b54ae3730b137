"""One leader among all instances: who holds a row of the database, for six seconds at a time.

Whether a lease has run out is told by the database's clock, one for all. SQLite has none of its own: its file is on
one machine, whose clock all its users share. Should that clock be set back, a lease that nobody renewed for its whole
length is also taken to have run out, by the clock of whoever watches it. A leader counts its six seconds on a clock
that nobody sets, from before it asked, so it stops before another may start.

One that did not notice, because it was stopped in between, still can not write: each leader has a higher `term` than
all before it, and `require` lets a transaction of an old one fail. PostgreSQL ends a transaction whose client was
stopped in it; with SQLite all others wait for such a client, as for any that holds the file's lock.
"""

import logging
import secrets
import threading
import time
from datetime import datetime, timedelta
from typing import Self

from sqlalchemy import bindparam, func, select, text
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.clock import present
from swapmeet.database.tables import LeaseRow
from swapmeet.database.tables.base import Moment
from swapmeet.errors import DatabaseFailed, LeaseLost

log = logging.getLogger("swapmeet.queue")

VALID = 6.0
"""Seconds that a lease lasts."""
RENEW = 2.0
"""Seconds between two renewals, and between two looks at another's lease."""
SCHEDULER = "scheduler"
"""The lease of whoever schedules jobs."""

_clock = getattr(
    time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC
)  # it goes on while the machine sleeps, where there is one


def require(session: Session, term: int, name: str = SCHEDULER) -> None:
    """Let a transaction fail unless the leader of this term still leads when it is committed.

    Nobody takes the lease over between this and the commit. A transaction on PostgreSQL that then does nothing for as
    long as a lease lasts is ended.

    Raises:
        LeaseLost: another leads, or did since; nothing of the transaction stays.
    """
    if session.get_bind().dialect.name == "postgresql":
        limit = select(func.set_config("idle_in_transaction_session_timeout", f"{VALID * 1000:.0f}", True))
        session.execute(limit)
    found = session.scalar(select(LeaseRow.term).where(LeaseRow.name == name).with_for_update(read=True))
    if found != term:
        raise LeaseLost(f"Another instance leads since (term {found}, not {term}); this one must stop and stand by.")


class Lease:
    """The lease of a name, for one instance.

    Call `hold` every `RENEW` seconds or more often; or enter it as a context, in which a thread of its own does so, and
    which gives it back at its end.

    Args:
        database: where it is recorded.
        name: what is led.
        holder: who this is, for people to read.
    """

    def __init__(self, database: Database, name: str, holder: str) -> None:
        self.name = name
        self._database = database
        self._holder = f"{holder[:100]} {secrets.token_hex(4)}"  # so that one of the same name is another
        self._term = 0
        self._renewed_at = self._until = float("-inf")
        self._seen: tuple[str, int, datetime] | None = None
        self._seen_at = 0.0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def term(self) -> int:
        """Of its last leadership; 0 if it never led."""
        return self._term

    @property
    def leads(self) -> bool:
        """Whether it leads at this moment, without asking the database."""
        return _elapsed() < self._until

    def hold(self) -> bool:
        """Take or renew the lease if it is time to; whether this instance leads.

        While the database can not be used it leads on until its lease runs out.
        """
        if self._thread is None:
            self._try()
        return self.leads

    def release(self) -> None:
        """Lead no more, and let another begin at once."""
        with self._lock:
            if self.leads:
                self._until = float("-inf")
                self._database.write(self._give_back)

    def __enter__(self) -> Self:
        self._try()
        self._stop.clear()
        self._thread = threading.Thread(target=self._keep, name=f"lease-{self.name}", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._thread
        self._stop.set()
        self._thread.join()
        self._thread = None
        try:
            self.release()
        except DatabaseFailed as error:
            log.warning("lease %s runs out by itself, as it could not be given back: %s", self.name, error)

    def _keep(self) -> None:
        while not self._stop.wait(RENEW):
            self._try()

    def _try(self) -> None:
        """Take or renew it, if it is time to."""
        with self._lock:
            asked, led = _elapsed(), self.leads
            if led and asked < self._renewed_at + RENEW / 2:
                return
            try:
                if led or self._database.read(self._is_open):
                    term = self._database.write(self._take)
                    self._renewed_at, self._until = (asked, asked + VALID) if term else (asked, float("-inf"))
                    if term and term != self._term:
                        log.info("%s leads %s in term %d", self._holder, self.name, term)
                    self._term = term or self._term
            except DatabaseFailed as error:
                log.warning("lease %s could not be renewed: %s", self.name, error)
            if led and not self.leads:
                log.warning("%s leads %s no more", self._holder, self.name)

    def _is_open(self, session: Session) -> bool:
        """Whether nobody has it."""
        row = session.get(LeaseRow, self.name)
        return row is None or self._has_run_out(row, present(session))

    def _has_run_out(self, row: LeaseRow, moment: datetime) -> bool:
        seen = (row.holder, row.term, row.expires_at)
        if seen != self._seen:
            self._seen, self._seen_at = seen, _elapsed()
        return row.expires_at <= moment or _elapsed() >= self._seen_at + VALID

    def _take(self, session: Session) -> int | None:
        """The term in which it leads, until a lease from now; None if another does."""
        row = session.get(LeaseRow, self.name, with_for_update=True)
        if row is None:
            session.execute(_NEW, {"name": self.name, "expires_at": present(session)})
            row = session.get_one(LeaseRow, self.name, with_for_update=True)
        moment = present(session)
        if row.holder != self._holder and not self._has_run_out(row, moment):
            return None
        if row.holder != self._holder or row.expires_at <= moment:
            row.term += 1
        row.holder, row.expires_at = self._holder, moment + timedelta(seconds=VALID)
        return row.term

    def _give_back(self, session: Session) -> None:
        row = session.get(LeaseRow, self.name, with_for_update=True)
        if row and row.holder == self._holder:
            row.expires_at = present(session)


_NEW = text(
    "INSERT INTO leases (name, holder, term, expires_at) VALUES (:name, '', 0, :expires_at) ON CONFLICT DO NOTHING"
).bindparams(bindparam("expires_at", type_=Moment))


def _elapsed() -> float:
    """Seconds on a clock that nobody sets."""
    return time.clock_gettime(_clock)
