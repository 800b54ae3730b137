"""The mistakes of many configurations in one refusal: each once, with the configurations that have it."""

from collections.abc import Mapping, Sequence
from typing import Any

from swapmeet.errors import RequestRefused
from swapmeet.files.rules import shortened
from swapmeet.fine_tuning.mistakes import MOST, Mistake

NAMED = 5
"""So many configurations are named that have the same mistake."""


def of_configurations(
    found: Sequence[Sequence[Mistake]], configurations: Sequence[Mapping[str, Any]], code: str = "invalid_request"
) -> RequestRefused:
    """Every mistake in one error, whose `param` is the first wrong field.

    Args:
        found: the mistakes of each configuration; what all have in common is told without them.
        configurations: in order, numbered from 1.
        code: of the error.
    """
    who: dict[Mistake, list[int]] = {}
    for number, mistakes in enumerate(found, 1):
        for mistake in dict.fromkeys(mistakes):
            who.setdefault(mistake, []).append(number)
    told = [_label(numbers, configurations) + mistake.sentence for mistake, numbers in list(who.items())[:MOST]]
    more = f" And {len(who) - MOST} more." if len(who) > MOST else ""
    return RequestRefused(" ".join(told) + more, next(iter(who)).path or None, code)


def described(configuration: Mapping[str, Any]) -> str:
    """A configuration in a few words."""
    return ", ".join(f"{name} {shortened(value)}" for name, value in configuration.items()) or "nothing changed"


def _label(numbers: Sequence[int], configurations: Sequence[Mapping[str, Any]]) -> str:
    if len(numbers) == len(configurations):
        return ""
    if len(numbers) == 1:
        return f"Configuration {numbers[0]} ({described(configurations[numbers[0] - 1])}): "
    *some, last = map(str, numbers[:NAMED])
    if len(numbers) > NAMED:
        return f"Configurations {', '.join([*some, last])} and {len(numbers) - NAMED} more: "
    return f"Configurations {', '.join(some)} and {last}: "
