"""What the configurations of a sweep will need together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from swapmeet.fine_tuning.mistakes import Mistake
from swapmeet.sweeps.mistakes import of_configurations
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


def plan_all(
    configurations: Sequence[Mapping[str, Any]],
    settings: Sequence[Mapping[str, Any]],
    plan: Callable[[int], Plan | Unplanned],
) -> dict[str, Any]:
    """The plan of a sweep: of each configuration, and of all together, one after the other.

    `seconds` and `cost` are sums; how many run at once is the queue's affair. `memory` is the most that one needs.

    Args:
        configurations: in order.
        settings: the run of each, of `FineTune`.
        plan: makes the plan of one, by its place; called once for all that need the same.

    Raises:
        RequestRefused: none of them can be run.
    """
    made: dict[tuple[Any, ...], Plan | Unplanned] = {}
    for place, each in enumerate(settings):
        if _decisive(each) not in made:
            made[_decisive(each)] = plan(place)
    plans = [made[_decisive(each)] for each in settings]
    refused = [plan for plan in plans if isinstance(plan, Unplanned)]
    if len(refused) == len(plans):
        told = [[Mistake("", plan.message)] for plan in refused]
        raise of_configurations(told, configurations, refused[0].code)
    return _totals(configurations, plans)


def _decisive(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """The same for runs that need the same: a learning rate, say, makes no other plan."""
    known = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    run = replace(RunSettings.of(known), seed=0)
    return tuple(getattr(run, field.name) for field in fields(run))


def _totals(configurations: Sequence[Mapping[str, Any]], plans: Sequence[Plan | Unplanned]) -> dict[str, Any]:
    planned = [plan for plan in plans if not isinstance(plan, Unplanned)]
    return {
        **{name: round(sum(plan[name] for plan in planned), 4) for name in SUMS},
        "memory": {name: max(plan["memory"][name] for plan in planned) for name in ("peak", "needed")},
        "price": max(plan["price"] for plan in planned),
        "hardware": planned[0]["hardware"],
        "words": list(dict.fromkeys(word for plan in planned for word in plan["words"])),
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
