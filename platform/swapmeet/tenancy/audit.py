"""The audit log: who did what to what, and how it ended. Rows are added, never changed, and in the end forgotten.

What is done in the database is noted in the transaction that does it (`note`). What is done elsewhere, in the registry
above all, is noted before, as begun, and after (`Audit.noting`): a server that is killed in between leaves an entry
which says that it may have been done. Each tenant's log is a chain (`audit_chain`).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from swapmeet.audit_export import BEGUN, DONE
from swapmeet.database import Database
from swapmeet.database.tables import AuditChainRow, AuditRow
from swapmeet.database.tables.base import now
from swapmeet.errors import PlatformError
from swapmeet.ids import new_id
from swapmeet.tenancy import audit_chain
from swapmeet.tenancy.caller import Caller, without_keys
from swapmeet_registry import RegistryError, canonical

REFUSED = "refused"
MOST_REFUSALS = 10_000
"""Kinds of refusals held in memory until they are written; more within a few seconds are not told apart."""


@dataclass(slots=True)
class _Refusal:
    """The first of its kind since the last were written, and how many there were."""

    caller: Caller
    at: datetime
    times: int = 0

    def row(self, action: str) -> AuditRow:
        """The row that tells of all of them."""
        detail = f"{self.times} times" if self.times > 1 else ""
        return _row(self.caller, action, "", REFUSED, self.caller.tenant, detail, self.at)


@dataclass(slots=True)
class Operation:
    """Something that is done elsewhere than in the database, and was begun.

    Args:
        caller: who does it.
        action: what, such as `alias.move`.
        subject: to what, as far as that is known: a publish gets its version's name once there is one.
        tenant: in whose log it stands.
        detail: a sentence more.
        id: which entries are of the same one.
        noted: its end is noted, or will be with a transaction under way.
    """

    caller: Caller
    action: str
    subject: str
    tenant: str
    detail: str
    id: str
    noted: bool = False

    def done(self, session: Session) -> None:
        """Note in a transaction that it is done, rather than when the block of `Audit.noting` ends."""
        self.end(session, DONE)
        self.noted = True

    def end(self, session: Session, outcome: str) -> None:
        """Note how it stands."""
        audit_chain.add(
            session,
            _row(self.caller, self.action, self.subject, outcome, self.tenant, self.detail, operation=self.id),
        )


class Audit:
    """The audit log of one database; for any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._refusals: dict[tuple[str, str], _Refusal] = {}
        self._lock = threading.Lock()

    @contextmanager
    def noting(
        self,
        caller: Caller,
        action: str,
        subject: str,
        *,
        tenant: str | None = None,
        detail: str = "",
        operation: str | None = None,
    ) -> Iterator[Operation]:
        """Do something elsewhere than in the database within the block: that it begins is noted first, its end last.

        Args:
            caller: who does it.
            action: what, such as `alias.move`.
            subject: to what: an id or a name.
            tenant: in whose log it stands; the caller's own where none is given.
            detail: a sentence more.
            operation: the id of what is tried again until it is done; a new one where none is given.

        Raises:
            DatabaseFailed: that it begins can not be noted, so it was not begun; or its end can not.
        """
        doing = Operation(caller, action, subject, tenant or caller.tenant, detail, operation or new_id("op-"))
        self._database.write(lambda session: doing.end(session, BEGUN))
        outcome = "internal_error"
        try:
            yield doing
            outcome = DONE
        except (PlatformError, RegistryError) as error:
            outcome = error.code
            raise
        finally:
            if outcome != DONE or not doing.noted:
                self._database.write(lambda session: doing.end(session, outcome))

    def refused(self, caller: Caller, action: str) -> None:
        """Note, in memory for now, that a caller was not let pass: a flood of such requests writes one row."""
        with self._lock:
            if len(self._refusals) < MOST_REFUSALS or (caller.key, action) in self._refusals:
                self._refusals.setdefault((caller.key, action), _Refusal(caller, now())).times += 1

    def flush(self) -> None:
        """Write the refusals noted so far."""
        with self._lock:
            noted, self._refusals = self._refusals, {}
        if not noted:
            return

        def add(session: Session) -> None:
            for (_, action), each in noted.items():
                audit_chain.add(session, each.row(action))

        try:
            self._database.write(add)
        except BaseException:
            with self._lock:
                self._refusals = noted | self._refusals
            raise

    def page(
        self, tenant: str | None, after: int | None = None, limit: int = 100, action: str | None = None
    ) -> tuple[list[AuditRow], bool]:
        """What stands in a tenant's log, or in all for None: newest first, and whether there is more.

        Args:
            tenant: whose log.
            after: only what is older than this row.
            limit: most rows.
            action: only this.
        """
        query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit + 1)
        if tenant is not None:
            query = query.where(AuditRow.tenant == tenant)
        if after is not None:
            query = query.where(AuditRow.id < after)
        if action is not None:
            query = query.where(AuditRow.action == action)
        rows = self._database.read(lambda session: list(session.scalars(query)))
        return rows[:limit], len(rows) > limit

    def forget(self, before: datetime) -> None:
        """Remove what is older than a moment, oldest first and some at a time; several may do so at once.

        An entry that is younger keeps all that came after it in the same log.
        """
        tenants = self._database.read(lambda session: list(session.scalars(select(AuditChainRow.tenant))))
        for tenant in sorted(tenants):
            while self._database.write(lambda session, tenant=tenant: audit_chain.forget(session, tenant, before)):  # type: ignore[misc]
                pass

    def export(self, tenant: str) -> Iterator[bytes]:
        """A tenant's log as `swapmeet.audit_export` reads it: lines of JSON."""
        for entry in audit_chain.export(self._database, tenant):
            yield canonical.encode(entry) + b"\n"


def note(
    session: Session, by: Caller | None, action: str, subject: str, *, tenant: str | None = None, detail: str = ""
) -> None:
    """Note what a caller does in the transaction that does it, so that both take place or neither.

    Args:
        session: the transaction.
        by: who does it; what the server does by itself, for None, is not noted.
        action: what, such as `key.create`.
        subject: to what: an id or a name.
        tenant: in whose log it stands; the caller's own where none is given.
        detail: a sentence more.
    """
    if by is not None:
        audit_chain.add(session, _row(by, action, subject, DONE, tenant or by.tenant, detail))


def _row(
    caller: Caller,
    action: str,
    subject: str,
    outcome: str,
    tenant: str,
    detail: str,
    at: datetime | None = None,
    operation: str = "",
) -> AuditRow:
    return AuditRow(
        at=at or now(),
        tenant=tenant,
        actor=caller.tenant,
        key=caller.key,
        action=action[:60],
        subject=_clean(subject)[:300],
        outcome=outcome[:60],
        request=_clean(caller.request)[:80],
        detail=_clean(detail)[:2000],
        operation=operation[:80],
    )


def _clean(text: str) -> str:
    """Without what databases do not take, and without keys, should a client have sent one where it does not belong."""
    return without_keys(text.replace("\0", "").encode(errors="replace").decode())
