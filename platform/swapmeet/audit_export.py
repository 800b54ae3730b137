"""Checks exported audit logs, without a server or a database.

A file has, for each log, a line that says where it begins and ends, and then a line for each entry. An entry's hash is
the SHA-256 of the canonical JSON (`swapmeet_registry.canonical`) of all else in it: its number, the hash of the entry
before, the moment to the microsecond, and its texts.

Whoever may write to the database can make a whole log anew. So note the hash of its end elsewhere now and then:
`verify` then says whether a later export has that entry.

What was begun, and never ended, a server that was killed may have done or not: `verify` names it.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from swapmeet.errors import AuditBroken
from swapmeet_registry import canonical

START = "0" * 64
"""What the first entry of a log has for the hash of the one before."""
BEGUN, DONE, EXPIRED = "begun", "done", "expired"
"""Outcomes of what has not ended, of what ended well, and of what is not tried again, as nobody did in time."""
TEXTS = ("tenant", "actor", "key", "action", "subject", "outcome", "request", "detail", "operation")
FIELDS = frozenset({*TEXTS, "at", "sequence", "previous", "hash"})


@dataclass(frozen=True, slots=True)
class Link:
    """A place in a tenant's log; where that is its end, with the entries of what was begun and did not end."""

    tenant: str
    sequence: int
    hash: str
    unended: tuple[dict[str, Any], ...] = field(default=(), compare=False)


def hash_of(entry: dict[str, Any]) -> str:
    """The hash that an entry must have."""
    return hashlib.sha256(canonical.encode({k: v for k, v in entry.items() if k != "hash"})).hexdigest()


class Unended:
    """The operations of a log that were begun and have not ended, as far as it was read."""

    def __init__(self) -> None:
        self._begun: dict[str, dict[str, Any]] = {}
        self._times: Counter[str] = Counter()

    def read(self, entry: dict[str, Any]) -> None:
        """Take in the next entry. What is tried until it is done or expired has ended then, however often it began."""
        operation, outcome = entry["operation"], entry["outcome"]
        if outcome == BEGUN:
            self._begun[operation] = entry
            self._times[operation] += 1
        elif operation in self._begun:
            self._times[operation] -= 1
            if outcome in (DONE, EXPIRED) or not self._times[operation]:
                del self._begun[operation], self._times[operation]

    def entries(self) -> tuple[dict[str, Any], ...]:
        """Where each was begun last, oldest first."""
        return tuple(sorted(self._begun.values(), key=lambda entry: int(entry["sequence"])))


def verify(lines: Iterable[str], contains: str | None = None) -> list[Link]:
    """Check exported logs, and give where each ends, and what in it did not.

    Args:
        lines: what `export` gave.
        contains: the hash of an entry, or of what an export began after, that must be among them.

    Raises:
        AuditBroken: a line is missing, changed, or in the wrong place; the message says which.
    """
    ends: list[Link] = []
    now = end = None
    unended = Unended()
    seen = contains is None
    for number, line in enumerate(lines, 1):
        try:
            entry = canonical.decode(line.encode())
            if entry.get("object") == "audit.chain":
                ends += _ended(now, end, unended)
                unended = Unended()
                now = Link(entry["tenant"], int(entry["after"]["sequence"]), str(entry["after"]["hash"]))
                end = Link(entry["tenant"], int(entry["end"]["sequence"]), str(entry["end"]["hash"]))
                seen = seen or now.hash == contains
                continue
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise AuditBroken(f"Line {number} is no entry of an audit log ({error}). Export it again.") from error
        now = _next(entry, now, number)
        unended.read(entry)
        seen = seen or now.hash == contains
    if now is None:
        raise AuditBroken("The file is empty. Export the log again.")
    ends += _ended(now, end, unended)
    if not seen:
        raise AuditBroken(f"No entry has the hash {contains}. The log was written anew, or that entry forgotten since.")
    return ends


def _next(entry: dict[str, Any], now: Link | None, number: int) -> Link:
    if now is None:
        raise AuditBroken("The file does not begin with where a log begins. Export it again, all of it.")
    texts = set(entry) == FIELDS and all(isinstance(entry[name], str) for name in TEXTS)
    if not texts or entry["tenant"] != now.tenant:
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


def _ended(now: Link | None, end: Link | None, unended: Unended) -> list[Link]:
    """The end of a log that was read; none before the first."""
    if now is None or end is None:
        return []
    if now != end:
        raise AuditBroken(
            f"{now.tenant}'s log ends with entry {now.sequence}, and should with {end.sequence}. "
            "Export it again; if it is the same, entries were removed."
        )
    return [replace(end, unended=unended.entries())]
