"""Which adapters answer a request: none, one, or several with a weight each.

A mix adds every adapter's own part to the base's result, times its weight: W x + Σ weight · scaling · B A x.
Nothing is merged, so requests with different mixes share a batch.
"""

import math
import re

from swapmeet_serving.errors import InvalidRequest

Mix = tuple[tuple[str, float], ...]
"""Adapters, each with its weight; empty for the bare base."""

MOST_ADAPTERS = 8
HIGHEST_WEIGHT = 100.0

_WEIGHT = re.compile(r"-?(\d+(\.\d*)?|\.\d+)(e-?\d+)?", re.ASCII)


def mix_of(adapter: str | Mix | None) -> Mix:
    """One adapter alone as a mix of one.

    Raises:
        InvalidRequest: a mix is too long, names an adapter twice, or has a weight that makes no sense.
    """
    if adapter is None:
        return ()
    if isinstance(adapter, str):
        return ((adapter, 1.0),)
    if len(adapter) > MOST_ADAPTERS:
        raise InvalidRequest(f"A mix has at most {MOST_ADAPTERS} adapters, and this one has {len(adapter)}.")
    if len({name for name, _ in adapter}) < len(adapter):
        raise InvalidRequest("A mix names an adapter twice. Add the weights and name it once.")
    for name, weight in adapter:
        if not math.isfinite(weight) or not 0 < abs(weight) <= HIGHEST_WEIGHT:
            raise InvalidRequest(
                f"The weight of {name} is {weight}; weights are numbers other than 0, up to {HIGHEST_WEIGHT:g}."
            )
    return adapter


def parse_mix(text: str) -> Mix:
    """The names and weights in `acme/legal*0.7+acme/french:prod*0.3`; a name alone weighs 1.

    Raises:
        InvalidRequest: a weight is no number, or `mix_of` refuses the whole.
    """
    return mix_of(tuple(_term(part.strip()) for part in text.split("+")))


def format_mix(mix: Mix) -> str:
    """A mix in the form that `parse_mix` reads."""
    return "+".join(name if weight == 1 else f"{name}*{weight:.12g}" for name, weight in mix)


def _term(text: str) -> tuple[str, float]:
    name, star, weight = text.partition("*")
    if not star:
        return name, 1.0
    if not _WEIGHT.fullmatch(weight.strip()):
        raise InvalidRequest(f"{weight!r} is no weight. Write a mix as TENANT/NAME*0.7+TENANT/OTHER*0.3.")
    return name.strip(), float(weight)
