"""Checks exported audit logs, without a server or a database.

A file has, for each log, a line that says where it begins and ends, and then a line for each entry. An entry's hash is
the SHA-256 of the canonical JSON (`swapmeet_registry.canonical`) of all else in it: its number, the hash of the entry
before, the moment to the microsecond, and its texts.

Whoever may write to the database can make a whole log anew. So note the hash of its end elsewhere now and then:
`verify` then says whether a later export has that entry.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from swapmeet.errors import AuditBroken
from swapmeet_registry import canonical

START = "0" * 64
"""What the first entry of a log has for the hash of the one before."""
TEXTS = ("tenant", "actor", "key", "action", "subject", "outcome", "request", "detail")
FIELDS = frozenset({*TEXTS, "at", "sequence", "previous", "hash"})


@dataclass(frozen=True, slots=True)
class Link:
    """A place in a tenant's log."""

    tenant: str
    sequence: int
    hash: str


def hash_of(entry: dict[str, Any]) -> str:
    """The hash that an entry must have."""
    return hashlib.sha256(canonical.encode({k: v for k, v in entry.items() if k != "hash"})).hexdigest()


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
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise AuditBroken(f"Line {number} is no entry of an audit log ({error}). Export it again.") from error
        now = _next(entry, now, number)
        seen = seen or now.hash == contains
    if now is None:
        raise AuditBroken("The file is empty. Export the log again.")
    _require_end(now, end)
    if not seen:
        raise AuditBroken(f"No entry has the hash {contains}. The log was written anew, or that entry forgotten since.")
    return ends


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
    if entry["hash"] != _hash_of(entry):
        raise AuditBroken(f"Line {number}: entry {entry['sequence']} of {now.tenant}'s log was changed.")
    return Link(now.tenant, now.sequence + 1, entry["hash"])


def _hash_of(entry: dict[str, Any]) -> str | None:
    """As `hash_of`; None of what no log can have: half a letter, or an infinity."""
    try:
        return hash_of(entry)
    except ValueError:
        return None


def _require_end(now: Link | None, end: Link | None) -> None:
    if now != end:
        assert now is not None
        assert end is not None
        raise AuditBroken(
            f"{now.tenant}'s log ends with entry {now.sequence}, and should with {end.sequence}. "
            "Export it again; if it is the same, entries were removed."
        )
