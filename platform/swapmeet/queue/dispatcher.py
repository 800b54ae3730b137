"""The cluster as the scheduler sees it: nodes, and attempts that are started, polled, parked and ended, on Ray."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from swapmeet.queue.survey import Gpu, Survey
from swapmeet_training.attempts.telling import Answer, Order, namespace

POLL_SECONDS = 2.0
"""How long a round waits for attempts that do not answer."""

ACCELERATOR = "accelerator_type:"
"""What Ray puts before a GPU's kind among a node's resources."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A node of the cluster: what it has, and what of that is free; memory in bytes.

    `free_gpus` is None where nothing but jobs takes GPUs. `accelerator` is what the node's driver calls its GPUs and
    `gpu_memory` what each has at least; before the driver is heard, their kind in Ray's words, if any, and None.
    """

    id: str
    cpus: float
    gpus: float
    memory: float
    free_cpus: float
    free_memory: float
    free_gpus: float | None = None
    accelerator: str | None = None
    gpu_memory: int | None = None


class Dispatcher(Protocol):
    """What the scheduler asks of a cluster. Each attempt goes by its job's id, which exists once."""

    def machines(self) -> list[Machine]:
        """The nodes that are there."""
        ...

    def knows(self, node: str) -> bool:
        """Whether a node is or was of this cluster; one that was not tells that the whole cluster is another."""
        ...

    def attempts(self) -> set[str]:
        """The jobs that have an attempt, whoever started it."""
        ...

    def start(self, order: Order) -> None:
        """Start an attempt; does nothing where the job has one."""
        ...

    def poll(self, heard: Mapping[str, int]) -> dict[str, Answer]:
        """What attempts told since, by job; those are missing that do not answer now."""
        ...

    def park(self, job: str) -> None:
        """Ask an attempt to save a checkpoint and stop at its next step."""
        ...

    def end(self, job: str) -> None:
        """End an attempt at once, with all its processes; does nothing where there is none."""
        ...


class RayDispatcher:
    """Attempts as detached actors of the Ray that this process is connected to.

    Args:
        storage: the URL of the platform's storage; platforms that share a cluster do not see each other's attempts.
    """

    def __init__(self, storage: str) -> None:
        self._namespace = namespace(storage)
        self._actors: dict[str, Any] = {}
        self._survey = Survey()

    def machines(self) -> list[Machine]:
        """See `Dispatcher`."""
        from ray._private.state import available_resources_per_node

        free = available_resources_per_node()  # type: ignore[no-untyped-call]
        nodes = [node for node in _nodes() if node["Alive"]]
        gpus = self._survey(node["NodeID"] for node in nodes if node["Resources"].get("GPU"))
        return [_machine(node, free.get(node["NodeID"], {}), gpus.get(node["NodeID"])) for node in nodes]

    def knows(self, node: str) -> bool:
        """See `Dispatcher`."""
        return any(each["NodeID"] == node for each in _nodes())

    def attempts(self) -> set[str]:
        """See `Dispatcher`."""
        from ray.util import list_named_actors

        named = list_named_actors(all_namespaces=True)
        jobs = {each["name"] for each in named if each["namespace"] == self._namespace}
        self._actors = {job: actor for job, actor in self._actors.items() if job in jobs}
        return jobs

    def start(self, order: Order) -> None:
        """See `Dispatcher`."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from swapmeet_training.attempts.attempt import Attempt

        actor = ray.remote(Attempt).options(
            name=order.job,
            namespace=self._namespace,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_concurrency=8,
            max_restarts=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(order.node, soft=False),
        )
        self._actors[order.job] = actor.remote(order)

    def poll(self, heard: Mapping[str, int]) -> dict[str, Answer]:
        """See `Dispatcher`."""
        import ray

        asked: dict[Any, str] = {
            actor.poll.remote(heard[job]): job for job in heard if (actor := self._actor(job)) is not None
        }
        if not asked:
            return {}
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=POLL_SECONDS)
        answers = {}
        for reference in answered:
            try:
                answers[asked[reference]] = ray.get(reference)
            except ray.exceptions.RayError:
                self._actors.pop(asked[reference], None)
        return answers

    def park(self, job: str) -> None:
        """See `Dispatcher`."""
        if (actor := self._actor(job)) is not None:
            actor.park.remote()

    def end(self, job: str) -> None:
        """See `Dispatcher`."""
        import ray

        if (actor := self._actor(job)) is not None:
            ray.kill(actor, no_restart=True)
        self._actors.pop(job, None)

    def _actor(self, job: str) -> Any:
        import ray

        if job not in self._actors:
            try:
                self._actors[job] = ray.get_actor(job, self._namespace)
            except ValueError:
                return None
        return self._actors[job]


def _nodes() -> list[dict[str, Any]]:
    import ray

    return list(ray.nodes())  # type: ignore[no-untyped-call]


def _machine(node: Mapping[str, Any], free: Mapping[str, float], gpu: Gpu | None) -> Machine:
    has = node["Resources"]
    word = next((name.removeprefix(ACCELERATOR) for name in has if name.startswith(ACCELERATOR)), None)
    return Machine(
        id=node["NodeID"],
        cpus=has.get("CPU", 0.0),
        gpus=has.get("GPU", 0.0),
        memory=has.get("memory", 0.0),
        free_cpus=free.get("CPU", 0.0),
        free_memory=free.get("memory", 0.0),
        free_gpus=free.get("GPU", 0.0),
        accelerator=gpu[0] if gpu else word,
        gpu_memory=gpu[1] if gpu else None,
    )
