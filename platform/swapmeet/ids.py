"""Ids of what tenants make: the moment in milliseconds and 64 random bits, so that they sort by age."""

import re
import secrets
from datetime import UTC, datetime, timedelta

_ID = re.compile(r"[a-z]+[-_]([0-9a-f]{12})[0-9a-f]{16}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def new_id(prefix: str, at: datetime | None = None) -> str:
    """A new id, such as `file-019b0a1f3c2e5d1c8a90b7f63e21`; `prefix` ends with its hyphen."""
    milliseconds = ((at or datetime.now(UTC)) - _EPOCH) // timedelta(milliseconds=1)
    return f"{prefix}{milliseconds:012x}{secrets.token_hex(8)}"


def made_at(identity: str) -> datetime | None:
    """When an id was made, to the millisecond; None for what is no id of ours."""
    found = _ID.fullmatch(identity)
    return _EPOCH + timedelta(milliseconds=int(found[1], 16)) if found else None


def shown(identity: str) -> str:
    """An id in a message that there is none such; what can be no id is not repeated."""
    return identity if len(identity) <= 80 and identity.isprintable() else "of that id"
