"""API keys: random, shown once, kept as hashes, and checked on every call. Nothing is open without one."""

import hashlib
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select, tuple_, update
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.tables import KeyRow, PermissionRow, TenantRow
from swapmeet.database.tables.base import now
from swapmeet.errors import Conflict, NotFound
from swapmeet.tenancy.audit import note
from swapmeet.tenancy.caller import KEY_PREFIX, Caller
from swapmeet.tenancy.scopes import expand
from swapmeet.tenancy.tenants import limits_of, tenant_row

KNOWN_SECONDS = 1.0
"""How long a key that was found is not looked up again: so much later at most, a change of it takes effect."""
MOST_KNOWN = 10_000
USED_EVERY = timedelta(minutes=1)
"""How exact a key's last use is."""
MOST_SHARED = 10_000
_ID = re.compile(r"key-[0-9a-f]{1,36}")


@dataclass(frozen=True, slots=True)
class Issued:
    """A new key, which is nowhere but here, and what is kept of it."""

    key: str
    row: KeyRow

    def __repr__(self) -> str:
        return f"Issued({self.row.id})"


class Keys:
    """The keys in one database; for any thread."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._known: OrderedDict[str, tuple[Caller, float]] = OrderedDict()
        self._used: dict[str, datetime] = {}

    def known_caller(self, key: str) -> Caller | None:
        """What `caller_of` found within the last second, without asking the database."""
        caller, until = self._known.get(_digest(key), (None, 0.0))
        return caller if self._clock() < until else None

    def caller_of(self, key: str) -> Caller | None:
        """Whose a key is and what it may do; None where there is no such key, or no longer."""
        digest, asked = _digest(key), self._clock()
        caller = self._database.read(lambda session: self._look_up(session, digest))
        if caller is None:
            self._known.pop(digest, None)
            return None
        self._known[digest] = caller, asked + KNOWN_SECONDS
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        return caller

    def _look_up(self, session: Session, digest: str) -> Caller | None:
        query = select(KeyRow, TenantRow).join(TenantRow, TenantRow.name == KeyRow.tenant)
        found = session.execute(query.where(KeyRow.digest == digest)).one_or_none()
        if found is None or ended(found[0]):
            return None
        row, tenant = found
        if row.last_used_at is None or now() - row.last_used_at > USED_EVERY:
            self._used[row.id] = now()
        shared = select(PermissionRow.model).where(PermissionRow.project == row.tenant).limit(MOST_SHARED)
        return Caller(
            tenant=row.tenant,
            key=row.id,
            scopes=frozenset(row.scopes),
            limits=limits_of(tenant),
            shared=frozenset(session.scalars(shared)),
            suspended=tenant.suspended_at is not None,
        )

    def create(
        self,
        tenant: str,
        scopes: Iterable[str],
        *,
        name: str = "",
        expires_at: datetime | None = None,
        by: Caller | None = None,
    ) -> Issued:
        """A new key, to be shown once.

        Args:
            tenant: whose; it must exist.
            scopes: what it may do, in scopes and roles.
            name: by which people tell it from others.
            expires_at: from when on it is no good any more.
            by: who makes it; None for the server itself.

        Raises:
            NotFound: there is no such tenant.
            ValueError: a scope is unknown.
        """
        issued = _issue(tenant, expand(scopes), name, expires_at, by)

        def work(session: Session) -> None:
            tenant_row(session, tenant)
            self._add(session, issued.row, "key.create", by)

        self._database.write(work)
        return issued

    def page(self, tenant: str | None, after: str | None = None, limit: int = 100) -> tuple[list[KeyRow], bool]:
        """A tenant's keys, or all for None: newest first, and whether there are more.

        Raises:
            NotFound: `after` is no key's id.
        """

        def work(session: Session) -> list[KeyRow]:
            query = select(KeyRow).order_by(KeyRow.created_at.desc(), KeyRow.id.desc()).limit(limit + 1)
            if tenant is not None:
                query = query.where(KeyRow.tenant == tenant)
            if after is not None:
                last = _get(session, tenant, after)
                query = query.where(tuple_(KeyRow.created_at, KeyRow.id) < tuple_(last.created_at, last.id))
            return list(session.scalars(query))

        rows = self._database.read(work)
        return rows[:limit], len(rows) > limit

    def get(self, tenant: str | None, identifier: str) -> KeyRow:
        """A key of a tenant's, or of anybody's for None.

        Raises:
            NotFound: there is none of this id.
        """
        return self._database.read(lambda session: _get(session, tenant, identifier))

    def revoke(self, tenant: str | None, identifier: str, by: Caller) -> KeyRow:
        """End a key; within `KNOWN_SECONDS` it is no good anywhere. To do so again changes nothing.

        Raises:
            NotFound: there is none of this id.
        """

        def work(session: Session) -> KeyRow:
            row = _get(session, tenant, identifier, lock=True)
            if row.revoked_at is None:
                row.revoked_at = now()
                note(session, by, "key.revoke", row.id, tenant=row.tenant)
            return row

        row = self._database.write(work)
        self._known.pop(row.digest, None)
        return row

    def rotate(self, tenant: str | None, identifier: str, grace: timedelta, by: Caller) -> Issued:
        """A new key with the same rights, name and length of life; the old one ends after a period of grace.

        Raises:
            Conflict: the key has ended, or was rotated already.
            NotFound: there is none of this id.
        """
        old = self.get(tenant, identifier)
        expires_at = now() + (old.expires_at - old.created_at) if old.expires_at else None
        issued = _issue(old.tenant, old.scopes, old.name, expires_at, by)

        def work(session: Session) -> None:
            row = _get(session, tenant, identifier, lock=True)
            if row.replaced_by == issued.row.id:
                return  # done by an earlier attempt, whose connection broke before it could say so
            if row.replaced_by is not None:
                raise Conflict(f"{row.id} was rotated already: {row.replaced_by} has taken its place. Rotate that one.")
            if ended(row):
                raise Conflict(f"{row.id} has ended, so nothing is left to rotate. Create a new key.")
            row.replaced_by = issued.row.id
            row.expires_at = min(row.expires_at or now() + grace, now() + grace)
            self._add(session, issued.row, "key.rotate", by, row.id)

        self._database.write(work)
        return issued

    def flush(self) -> None:
        """Write when keys were used last, as far as it is not written."""
        used, self._used = self._used, {}
        if used:
            self._database.write(
                lambda session: [
                    session.execute(update(KeyRow).where(KeyRow.id == each).values(last_used_at=at))
                    for each, at in sorted(used.items())
                ]
            )

    def _add(self, session: Session, row: KeyRow, action: str, by: Caller | None, old: str = "") -> None:
        if session.get(KeyRow, row.digest) is not None:
            return  # an earlier attempt was done, although the connection broke before it said so
        session.merge(row)
        detail = f"{' '.join(row.scopes)}; until {row.expires_at or 'revoked'}"
        note(session, by, action, f"{old} {row.id}".strip(), tenant=row.tenant, detail=detail)


def ended(row: KeyRow) -> bool:
    """Whether a key is no good any more."""
    return row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now())


def _get(session: Session, tenant: str | None, identifier: str, *, lock: bool = False) -> KeyRow:
    query = select(KeyRow).where(KeyRow.id == identifier)
    row = session.scalar(query.with_for_update() if lock else query) if _ID.fullmatch(identifier) else None
    if row is None or (tenant is not None and row.tenant != tenant):
        # The id is not repeated: it may be a key, where somebody took one for the other.
        raise NotFound("There is no key of this id. Ids begin with 'key-'; `swapmeet key list` shows them.")
    return row


def _issue(tenant: str, scopes: Iterable[str], name: str, expires_at: datetime | None, by: Caller | None) -> Issued:
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    row = KeyRow(
        digest=_digest(key),
        id=f"key-{secrets.token_hex(12)}",
        tenant=tenant,
        name=name,
        hint=key[-4:],
        scopes=sorted(scopes),
        created_at=now(),
        created_by=by.key if by else None,
        expires_at=expires_at,
    )
    return Issued(key, row)


def _digest(key: str) -> str:
    # A key has 256 random bits, so a fast hash without salt is as good as a slow one.
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
