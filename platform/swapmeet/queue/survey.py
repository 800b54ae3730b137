"""What GPUs the nodes of a cluster have: asked of each node's driver, because Ray's word for a kind tells no memory."""

import threading
from collections.abc import Iterable, Sequence
from typing import Any

WAIT_SECONDS = 10.0
"""How long nodes that were never asked are waited for; those that answer later are known from then on."""

Gpu = tuple[str, int]
"""A name as its driver has it, and bytes of memory."""


class Survey:
    """Asks each node once; for any thread. What nodes have does not change while they are there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[str, Any] = {}
        self._known: dict[str, Gpu | None] = {}

    def __call__(self, nodes: Iterable[str]) -> dict[str, Gpu]:
        """The GPU of each of these nodes, the one with the least memory where they differ; those unknown are missing.

        Args:
            nodes: Ray's ids of nodes that are there and have GPUs.
        """
        with self._lock:
            return self._ask(list(nodes))

    def _ask(self, nodes: Sequence[str]) -> dict[str, Gpu]:
        import ray

        new = [node for node in nodes if node not in self._known and node not in self._asked]
        self._asked |= {node: _asked(node) for node in new}
        if self._asked:
            ray.wait(list(self._asked.values()), num_returns=len(self._asked), timeout=WAIT_SECONDS if new else 0)
        for node in list(self._asked):
            if node not in nodes:
                self._asked.pop(node, None)
            elif ray.wait([self._asked[node]], timeout=0)[0]:
                self._known[node] = _answer(self._asked.pop(node))
        self._known = {node: found for node, found in self._known.items() if node in nodes}
        return {node: found for node, found in self._known.items() if found is not None}


def _asked(node: str) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from swapmeet_training.plan import own_gpus

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(own_gpus).options(num_cpus=0, scheduling_strategy=there).remote()


def _answer(reference: Any) -> Gpu | None:
    """The smallest GPU; None where the driver shows none, or the node went away meanwhile."""
    import ray

    try:
        found: list[Gpu] = ray.get(reference)
    except ray.exceptions.RayError:
        return None
    return min(found, key=lambda gpu: gpu[1], default=None)
