"""Holds each entry of a tenant's audit log to the one before, so that none is changed, lost or put in between unseen.

An entry's hash is the SHA-256 of the canonical JSON (`swapmeet_registry.canonical`) of all that is in it: its number
in the log, the hash of the one before, the moment to the microsecond, and its texts. A log's row in `audit_chains` has
the last number and hash; whoever adds an entry locks it, in the last moment of the transaction that the entry tells
of, so that logs have no gap and transactions wait for each other no longer than a commit takes. Where old entries were
forgotten, the row keeps the last of them as an anchor.

Whoever may write to the database can make a whole log anew. So note the end of an export elsewhere now and then:
`verify` then says whether a later export goes on from it.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, event, func, select
from sqlalchemy.orm import Session

from swapmeet.database.tables import AuditChainRow, AuditRow
from swapmeet.errors import AuditBroken
from swapmeet.tenancy.inserting import insert_on
from swapmeet_registry import canonical

START = "0" * 64
"""What the first entry of a log has for the hash of the one before."""
TEXTS = ("tenant", "actor", "key", "action", "subject", "outcome", "request", "detail")
FIELDS = frozenset({*TEXTS, "at", "sequence", "previous", "hash"})
PENDING = "swapmeet_audit"
AT_ONCE = 500
"""Entries that one transaction removes, or one read brings."""


@dataclass(frozen=True, slots=True)
class Link:
    """A place in a tenant's log."""

    tenant: str
    sequence: int
    hash: str


def add(session: Session, row: AuditRow) -> None:
    """Add an entry at the end of its log when the transaction ends, if that takes place."""
    if PENDING not in session.info:
        session.info[PENDING] = []
        event.listen(session, "before_commit", _chain)
    session.info[PENDING].append(row)


def entry_of(row: AuditRow) -> dict[str, Any]:
    """An entry as it is hashed, with its hash."""
    at = row.at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    texts = {name: getattr(row, name) for name in TEXTS}
    return texts | {"at": at, "sequence": row.sequence, "previous": row.previous, "hash": row.hash}


def hash_of(entry: dict[str, Any]) -> str:
    """The hash that an entry must have."""
    return hashlib.sha256(canonical.encode({k: v for k, v in entry.items() if k != "hash"})).hexdigest()


def export(session: Session, tenant: str) -> Iterator[dict[str, Any]]:
    """A log for `verify`: first where it begins and ends, then every entry, oldest first."""
    chain = session.get(AuditChainRow, tenant)
    begin = (chain.anchor_sequence, chain.anchor_hash) if chain else (0, START)
    end = (chain.sequence, chain.hash) if chain else (0, START)
    yield {
        "object": "audit.chain",
        "tenant": tenant,
        "after": {"sequence": begin[0], "hash": begin[1]},
        "end": {"sequence": end[0], "hash": end[1]},
    }
    last = begin[0]
    while last < end[0]:
        query = select(AuditRow).where(AuditRow.tenant == tenant, AuditRow.sequence > last)
        rows = list(session.scalars(query.order_by(AuditRow.sequence).limit(min(AT_ONCE, end[0] - last))))
        if not rows:
            return  # some are gone, which `verify` says
        yield from map(entry_of, rows)
        last = rows[-1].sequence
        session.expunge_all()


def verify(lines: Iterable[str], contains: str | None = None) -> list[Link]:
    """Check exported logs, and give where each ends.

    Args:
        lines: what `export` gave.
        contains: the hash of an entry, or of what an export began after, that must be among them.

    Raises:
        AuditBroken: a line is missing, changed, or in the wrong place; the message says which.
    """
    ends: list[Link] = []
    now = end = None
    seen = contains is None
    for number, line in enumerate(lines, 1):
        try:
            entry = canonical.decode(line.encode())
            if entry.get("object") == "audit.chain":
                _require_end(now, end)
                now = Link(entry["tenant"], int(entry["after"]["sequence"]), str(entry["after"]["hash"]))
                end = Link(entry["tenant"], int(entry["end"]["sequence"]), str(entry["end"]["hash"]))
                ends.append(end)
                seen = seen or now.hash == contains
                continue
        except (ValueError, KeyError, TypeError) as error:
            raise AuditBroken(f"Line {number} is no entry of an audit log ({error}). Export it again.") from error
        now = _next(entry, now, number)
        seen = seen or now.hash == contains
    if now is None:
        raise AuditBroken("The file is empty. Export the log again.")
    _require_end(now, end)
    if not seen:
        raise AuditBroken(f"No entry has the hash {contains}. The log was written anew, or that entry forgotten since.")
    return ends


def forget(session: Session, tenant: str, before: datetime) -> bool:
    """Remove a log's entries up to the first that is not older than a moment; says whether there may be more.

    Some at a time; the last that was removed is the log's anchor from then on.
    """
    chain = session.get(AuditChainRow, tenant, with_for_update=True)
    if chain is None:
        return False
    here = AuditRow.tenant == tenant
    kept = session.scalar(select(func.min(AuditRow.sequence)).where(here, AuditRow.at >= before))
    last = min(chain.sequence if kept is None else kept - 1, chain.anchor_sequence + AT_ONCE)
    found = session.scalar(select(AuditRow.hash).where(here, AuditRow.sequence == last))
    if last <= chain.anchor_sequence or found is None:
        return False
    session.execute(delete(AuditRow).where(here, AuditRow.sequence <= last))
    chain.anchor_sequence, chain.anchor_hash = last, found
    return True


def _chain(session: Session) -> None:
    """Give a transaction's entries their places; of several logs in one order, or two could wait for each other."""
    pending, session.info[PENDING] = session.info[PENDING], []
    for tenant in sorted({row.tenant for row in pending}):
        start = {"tenant": tenant, "sequence": 0, "hash": START, "anchor_sequence": 0, "anchor_hash": START}
        session.execute(insert_on(session, AuditChainRow).values(**start).on_conflict_do_nothing())
        chain = session.get_one(AuditChainRow, tenant, with_for_update=True, populate_existing=True)
        for row in (each for each in pending if each.tenant == tenant):
            row.sequence, row.previous = chain.sequence + 1, chain.hash
            row.hash = hash_of(entry_of(row))
            chain.sequence, chain.hash = row.sequence, row.hash
            session.add(row)


def _next(entry: dict[str, Any], now: Link | None, number: int) -> Link:
    if now is None:
        raise AuditBroken("The file does not begin with where a log begins. Export it again, all of it.")
    if set(entry) != FIELDS or entry["tenant"] != now.tenant:
        raise AuditBroken(f"Line {number} is no entry of {now.tenant}'s log.")
    if entry["sequence"] != now.sequence + 1 or entry["previous"] != now.hash:
        raise AuditBroken(
            f"Line {number}: after entry {now.sequence} of {now.tenant}'s log comes entry {entry['sequence']}, which "
            "does not follow it. Entries were removed, added or moved."
        )
    if entry["hash"] != hash_of(entry):
        raise AuditBroken(f"Line {number}: entry {entry['sequence']} of {now.tenant}'s log was changed.")
    return Link(now.tenant, now.sequence + 1, entry["hash"])


def _require_end(now: Link | None, end: Link | None) -> None:
    if now != end:
        assert now is not None
        assert end is not None
        raise AuditBroken(
            f"{now.tenant}'s log ends with entry {now.sequence}, and should with {end.sequence}. "
            "Export it again; if it is the same, entries were removed."
        )
