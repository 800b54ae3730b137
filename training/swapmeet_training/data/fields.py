"""Checks of single values: that they are there, of the right type, and texts that a tokenizer can read."""

import json
from collections.abc import Collection
from typing import Any

from swapmeet_training.data.findings import Notes

SHOWN = 60
"""Characters of a value that a message shows."""


def present(value: dict[str, Any]) -> dict[str, Any]:
    """An object without what is null: tables fill columns with null where an example lacks a key."""
    return {key: each for key, each in value.items() if each is not None}


def no_others(value: dict[str, Any], known: Collection[str], where: str, kind: str, notes: Notes) -> None:
    """Note keys that are not among the known ones."""
    for key in sorted(str(key) for key in value.keys() - set(known)):
        keys = ", ".join(sorted(known))
        notes.mistake(f"{where}{shown(key)}", kind, f"is an unknown key; known are {keys}", "Leave it out.")


def text(value: Any, field: str, notes: Notes, kind: str = "data_type", *, may_be_empty: bool = False) -> str | None:
    """A text, or None with what is wrong noted."""
    if not isinstance(value, str):
        notes.mistake(field, kind, f"must be text, not {type(value).__name__}", "Write it in quotation marks.")
    elif not may_be_empty and not value.strip():
        notes.mistake(field, "empty_text", "is empty", "Write some text, or leave the example out.")
    elif is_encodable(value, field, notes):
        return value
    return None


def required_text(
    owner: dict[str, Any], key: str, where: str, notes: Notes, kind: str = "missing_key", *, may_be_empty: bool = False
) -> str | None:
    """The text under a key, or None with what is wrong noted; `kind` is that of a missing one."""
    if key in owner:
        return text(owner[key], f"{where}{key}", notes, may_be_empty=may_be_empty)
    notes.mistake(f"{where}{key}", kind, "is missing", "Add it.")
    return None


def is_encodable(value: str, field: str, notes: Notes) -> bool:
    """Whether a text holds whole characters only; half ones are noted."""
    try:
        value.encode()
    except UnicodeEncodeError:
        message = "holds half a surrogate pair (\\ud800 to \\udfff)"
        notes.mistake(field, "lone_surrogate", message, "Write the whole character.")
        return False
    return True


def shown(value: Any, most: int = SHOWN) -> str:
    """A value as a message shows it: short, and as text that can be printed and stored; a text as it is."""
    written = value if isinstance(value, str) else _json(value)
    if not written.isprintable():
        written = written.encode("unicode_escape").decode()
    return written if len(written) <= most else written[:most] + "…"


def quoted(value: Any) -> str:
    """A value as JSON, short."""
    return shown(_json(value))


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=repr)
    except (ValueError, TypeError, RecursionError):
        return type(value).__name__
