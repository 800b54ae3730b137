"""What the configurations of a sweep will need together."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swapmeet_training.plan.settings import RunSettings

Plan = Mapping[str, Any]
"""As `swapmeet_training.plan.Plan.as_dict` gives it."""
SUMS = ("steps", "trained_tokens", "padded_tokens", "seconds", "cost")
TOLD = (*SUMS, "share", "price", "speed", "words")


@dataclass(frozen=True, slots=True)
class Unplanned:
    """Why a configuration has no plan: as it is, its job would fail."""

    code: str
    message: str


def alike(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """The same for runs that need the same: a learning rate, say, makes no other plan."""
    decisive = RunSettings.of(settings)
    values = (getattr(decisive, name) for name in RunSettings.__slots__ if name != "seed")
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)


def totals(configurations: Sequence[Mapping[str, Any]], plans: Sequence[Plan | Unplanned]) -> dict[str, Any]:
    """The plan of a sweep: of each configuration, and of all together one after the other.

    `seconds` and `cost` are sums; how many run at once is the queue's affair. `memory` is the most that one needs.

    Args:
        configurations: in order.
        plans: one each.
    """
    planned = [plan for plan in plans if not isinstance(plan, Unplanned)]
    return {
        **{name: round(sum(plan[name] for plan in planned), 4) for name in SUMS},
        "memory": {name: max((plan["memory"][name] for plan in planned), default=0) for name in ("peak", "needed")},
        "price": max((plan["price"] for plan in planned), default=0),
        "hardware": planned[0]["hardware"] if planned else None,
        "words": list(dict.fromkeys(_words(planned))),
        "runs": [
            {"number": number, "configuration": dict(configuration), **_told(plan)}
            for number, (configuration, plan) in enumerate(zip(configurations, plans, strict=True), 1)
        ],
    }


def _told(plan: Plan | Unplanned) -> dict[str, Any]:
    if isinstance(plan, Unplanned):
        return {"error": {"code": plan.code, "message": plan.message}}
    memory = {name: plan["memory"][name] for name in ("peak", "needed")}
    return {**{name: plan[name] for name in TOLD}, "memory": memory, "error": None}


def _words(plans: Iterable[Plan]) -> Iterable[str]:
    for plan in plans:
        yield from plan["words"]
