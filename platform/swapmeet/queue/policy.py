"""Who runs next, and where: first come, first served, wherever there is room."""

from collections.abc import Iterable, Mapping, Sequence

from swapmeet.queue.records import Active, Decision, Need, Node, Promise, Share, Start, Wait, Waiting

__all__ = ["Active", "Decision", "Need", "Node", "Promise", "Share", "Start", "Wait", "Waiting", "decide"]


def decide(
    waiting: Iterable[Waiting],
    active: Sequence[Active],  # noqa: ARG001 - what they hold is not free
    nodes: Sequence[Node],
    shares: Mapping[str, Share],  # noqa: ARG001
    now: float,  # noqa: ARG001
    promises: Mapping[str, Promise] | None = None,  # noqa: ARG001
) -> Decision:
    """What to start now, and why all else waits."""
    decision = Decision()
    free = list(nodes)
    for job in sorted(waiting, key=lambda job: (-job.priority, job.queued_at, job.id)):
        number = next((number for number, node in enumerate(free) if _fits(job.need, node)), None)
        if number is None:
            decision.waits[job.id] = Wait("No node has enough free", None)
        else:
            free[number] = _less(free[number], job.need)
            decision.starts.append(Start(job.id, free[number].id))
    return decision


def _fits(need: Need, node: Node) -> bool:
    enough = [share for share in node.gpus if share >= min(need.gpus, 1)]
    return need.cpus <= node.cpus and need.memory <= node.memory and len(enough) >= need.gpus


def _less(node: Node, need: Need) -> Node:
    gpus, left = [], need.gpus
    for share in node.gpus:
        taken = min(left, 1.0) if share >= min(left, 1.0) else 0.0
        gpus.append(share - taken)
        left -= taken
    return Node(node.id, node.cpus - need.cpus, tuple(gpus), node.memory - need.memory)
