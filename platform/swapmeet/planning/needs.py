"""What of its machine a run takes: as asked for, and else by its plan."""

from collections.abc import Mapping, Sequence
from typing import Any

from swapmeet.planning.question import most_memory
from swapmeet.queue.dispatcher import Machine
from swapmeet_training.plan.hardware import GIB


def needs_of(
    resources: Mapping[str, Any], plan: Mapping[str, Any] | None, machines: Sequence[Machine]
) -> dict[str, Any]:
    """The resources of a run, whole: cpus, gpus (a share of one) and memory (bytes, 0: none is reserved).

    Where there are GPUs and no plan, a run that names no share gets a whole one. Memory is reserved for runs on CPUs
    in whole GiB, yet never more than a machine has; where Ray reckons with less than a run needs that fits into the
    machine by its plan, none is.

    Args:
        resources: that were asked for.
        plan: as `Plan.as_dict` gives it.
        machines: the cluster's, with the GPUs that jobs may have.
    """
    found = {"cpus": 1.0, "gpus": _share(plan, machines), "memory": 0} | dict(resources)
    if not resources.get("memory") and plan and not found["gpus"]:
        needed, most = plan["memory"]["needed"], most_memory(machines, float(found["cpus"]))
        found["memory"] = min(-(-needed // GIB) * GIB, int(most)) if needed <= most else 0
    return found


def _share(plan: Mapping[str, Any] | None, machines: Sequence[Machine]) -> float:
    if plan is not None:
        return min(float(plan["share"]), 1.0)
    return float(any(machine.gpus >= 1 for machine in machines))
