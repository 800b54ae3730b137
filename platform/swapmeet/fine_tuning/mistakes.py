"""Pydantic's findings as sentences, each with the field's path and what to do."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from swapmeet.errors import RequestRefused
from swapmeet.files.rules import shortened

MOST = 20
OPENING, ENDING = re.compile(r"^(\w+ )?should "), re.compile(r" after validation, not \d+$")
"""What pydantic's messages begin and end with, and a sentence of ours does not."""
TAGS = {"number", "names", "word"}
"""What pydantic puts into a path to say which of two forms it tried."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong with the field at `path`, which may be empty, and what to do."""

    path: str
    sentence: str


def refusal(error: ValidationError, known: Mapping[str, Sequence[str]]) -> RequestRefused:
    """Every mistake in one error, whose `param` is the first wrong field.

    Args:
        error: what was found.
        known: the fields that there are, by the path of the object that has them.
    """
    found, count = mistakes_of(error, known), error.error_count()
    more = f" And {count - MOST} more." if count > MOST else ""
    return RequestRefused(" ".join(each.sentence for each in found) + more, found[0].path or None)


def mistakes_of(error: ValidationError, known: Mapping[str, Sequence[str]]) -> list[Mistake]:
    """The first of what was found, each once; see `refusal`."""
    findings = error.errors(include_url=False)[:MOST]
    return list(dict.fromkeys(Mistake(_path(finding), _sentence(finding, known)) for finding in findings))


def _path(finding: Any) -> str:
    return ".".join(str(part)[:80] for part in finding["loc"] if part not in TAGS)


def _sentence(finding: Any, known: Mapping[str, Sequence[str]]) -> str:
    path, kind = _path(finding), finding["type"]
    if kind == "unfitting":
        return f"{path}: {finding['msg']}" if path else str(finding["msg"])
    if kind == "extra_forbidden":
        parent = path.rpartition(".")[0]
        fields = known.get(parent, ())
        hint = f"; known are {', '.join(fields)}" if fields else "; leave it out"
        return f"{path} is no parameter{hint}."
    if kind == "missing":
        return f"{path} is missing. Add it."
    if kind == "union_tag_not_found":
        return f"{path}.type is missing. Add it."
    if kind == "union_tag_invalid":
        return f"{path}.type should be one of {finding['ctx']['expected_tags']}."
    wanted = OPENING.sub("", ENDING.sub("", finding["msg"]))
    if isinstance(finding["input"], str):
        wanted = re.sub(r"\bitem(s?)$", r"character\1", wanted)
    wanted = wanted[:1].lower() + wanted[1:] if not wanted.startswith("'") else wanted
    return f"{path or 'The request'} is {_shown(finding['input'])} but should {wanted}."


def _shown(value: object) -> str:
    """As JSON has it, which is what the caller wrote."""
    try:
        return shortened(value) if isinstance(value, str) else _cut(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        return f"of the type {type(value).__name__}"


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "…"
