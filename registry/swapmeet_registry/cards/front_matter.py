"""YAML of strangers: nothing but texts, lists and mappings, within bounds.

No tags, no anchors and aliases (a few lines of which can stand for terabytes), no deep nesting; every value is read as
the text that stands there, so that `no` is no False and `1_0` no 10.
"""

import re
from typing import Any

MOST_BYTES = 16 << 10
MOST_DEPTH = 8
FENCED = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)(?:^|\n)---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def split(text: str) -> tuple[str | None, str]:
    """A README's front matter, or None, and what follows it."""
    found = FENCED.match(text)
    return (found[1], text[found.end() :]) if found else (None, text)


def load(text: str) -> dict[str, Any]:
    """A mapping of texts, lists and mappings.

    Raises:
        ValueError: it is anything else; the message completes the sentence "The front matter …".
    """
    import yaml  # only who reads cards needs it

    if len(text.encode(errors="replace")) > MOST_BYTES:
        raise ValueError(f"is longer than {MOST_BYTES >> 10} KiB")
    try:
        _require_plain(yaml.parse(text, Loader=yaml.BaseLoader))
        value = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - it makes texts, lists and mappings only
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        raise ValueError(f"is not YAML{f' (line {place.line + 1})' if place else ''}") from None
    if value is None or value == "":
        return {}
    if not isinstance(value, dict):
        raise ValueError("is not a mapping of names to values")
    if not all(isinstance(name, str) for name in value):
        raise ValueError("has a name that is no text")
    return value


def _require_plain(events: Any) -> None:
    import yaml

    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError("has an anchor or alias, which is not allowed")
        if getattr(event, "tag", None):
            raise ValueError("has a tag, which is not allowed")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise ValueError(f"is nested more than {MOST_DEPTH} deep")
