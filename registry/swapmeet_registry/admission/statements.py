"""What is said of an adapter, by its folder or by whoever publishes it: shown to others, so short, and plain text."""

from collections.abc import Iterator
from typing import Any

from swapmeet_registry import canonical
from swapmeet_registry.errors import Refused

MAX_TEXT = 200
MAX_TRAINING = 256 << 10
"""Bytes of the training's configuration, as JSON."""
MOST = {"tags": 100, "metrics": 1000, "packages": 2000}
TEXTS = ("license", "base_license", "dataset_license", "run", "parent")


def require_plain(facts: dict[str, Any]) -> None:
    """Check what goes into a manifest beside the files.

    Args:
        facts: by the names of `Facts`' fields.

    Raises:
        Refused: something is too long, too much, or holds what is no text; the message names all of it.
    """
    mistakes = list(_mistakes(facts))
    if mistakes:
        raise Refused(f"What is said of the adapter can not be published: {'; '.join(mistakes)}. Put it right.")


def _mistakes(facts: dict[str, Any]) -> Iterator[str]:
    for name, most in MOST.items():
        if len(facts.get(name) or ()) > most:
            yield f"there are over {most} {name}"
        elif not all(map(_plain, facts.get(name) or ())):
            yield f"{name} have words of over {MAX_TEXT} letters, or with signs that can not be printed"
    for name in TEXTS:
        if (text := facts.get(name)) is not None and not _plain(text):
            yield f"{name} has over {MAX_TEXT} letters, or signs that can not be printed"
    if not _plain(facts["base"].name) or not all(map(_plain, (facts.get("packages") or {}).values())):
        yield "the base's name, or a package's version, is too long or can not be printed"
    try:
        if len(canonical.encode(facts.get("training") or {})) > MAX_TRAINING:
            yield f"training has over {MAX_TRAINING} bytes"
    except ValueError:
        yield "training holds what is no JSON"


def _plain(text: str) -> bool:
    return len(text) <= MAX_TEXT and text.isprintable()
