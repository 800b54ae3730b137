"""The licence that a base is under, as the catalogue or its own README.md states it. Nothing is guessed."""

import re
from pathlib import Path
from typing import Any

import yaml

from swapmeet_registry.bases.catalogue import CATALOGUE

CARD = "README.md"
MOST = 1 << 20
"""Bytes of a card that are looked at: what it states stands at its beginning."""
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*\n", re.DOTALL)


def stated_license(requested: str, folder: Path) -> str | None:
    """A base's licence, or None where none is stated.

    Args:
        requested: what was asked for when the base was added; `catalogue:NAME` for one of the catalogue's.
        folder: the base's.
    """
    kind, _, name = requested.partition(":")
    if kind == "catalogue" and name in CATALOGUE:
        return CATALOGUE[name].license
    stated = _front_matter(folder / CARD)
    license, own = stated.get("license"), stated.get("license_name")  # noqa: A001 - the card's word
    if license == "other" and isinstance(own, str):
        return own
    return license if isinstance(license, str) else None


def _front_matter(card: Path) -> dict[str, Any]:
    try:
        with card.open("rb") as stream:
            found = _FRONT_MATTER.match(stream.read(MOST).decode(errors="replace"))
        stated = yaml.safe_load(found[1]) if found else None
    except (OSError, yaml.YAMLError):
        return {}
    return stated if isinstance(stated, dict) else {}
