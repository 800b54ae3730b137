"""Holds each entry of a tenant's audit log to the one before, so that none is changed, lost or put in between unseen.

An entry's hash is the SHA-256 of the canonical JSON (`swapmeet_registry.canonical`) of all that is in it: its number
in the log, the hash of the one before, the moment to the microsecond, and its texts. A log's row in `audit_chains` has
the last number and hash; whoever adds an entry locks it, in the last moment of the transaction that the entry tells
of, so that logs have no gap and transactions wait for each other no longer than a commit takes. Where old entries were
forgotten, the row keeps the last of them as an anchor.

Exports are checked by `swapmeet.audit_export`, without a database.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

from sqlalchemy import delete, event, func, select
from sqlalchemy.orm import Session

from swapmeet.audit_export import START, TEXTS, hash_of
from swapmeet.database import Database
from swapmeet.database.tables import AuditChainRow, AuditRow
from swapmeet.errors import Conflict
from swapmeet.tenancy.inserting import insert_on

PENDING = "swapmeet_audit"
AT_ONCE = 500
"""Entries that one transaction removes, or one read brings."""


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


def export(database: Database, tenant: str) -> Iterator[dict[str, Any]]:
    """A log for `verify`: first where it begins and ends, then every entry up to there, oldest first.

    Entries never change, so each read is a transaction of its own: whoever takes long to fetch them holds nothing.

    Raises:
        Conflict: entries that were still to come were forgotten meanwhile.
    """
    chain = database.read(lambda session: session.get(AuditChainRow, tenant))
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
        rows, anchor = database.read(partial(_page, tenant=tenant, after=last, limit=min(AT_ONCE, end[0] - last)))
        if anchor > last:
            raise Conflict(f"Old entries of {tenant}'s log were forgotten while it was exported. Export it again.")
        if not rows:
            return  # some are gone, which `verify` says
        yield from map(entry_of, rows)
        last = rows[-1].sequence


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


def _page(session: Session, tenant: str, after: int, limit: int) -> tuple[list[AuditRow], int]:
    """The next entries, and the last that was forgotten by the time that they were read."""
    query = select(AuditRow).where(AuditRow.tenant == tenant, AuditRow.sequence > after)
    rows = list(session.scalars(query.order_by(AuditRow.sequence).limit(limit)))
    return rows, session.scalar(select(AuditChainRow.anchor_sequence).where(AuditChainRow.tenant == tenant)) or 0


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
