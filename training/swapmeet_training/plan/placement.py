"""Where a run would be placed: the free GPU, or share of one, that it fits into most tightly."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Protocol

from swapmeet_training.plan.hardware import Hardware

STEPS = 100
"""Shares of a GPU are given in hundredths."""


class Node(Protocol):
    """A machine: its free CPUs, the free share of each GPU (0 to 1), and its free memory in bytes."""

    @property
    def id(self) -> str:
        """Its name."""

    @property
    def cpus(self) -> float:
        """Free CPUs."""

    @property
    def gpus(self) -> tuple[float, ...]:
        """The free share of each GPU."""

    @property
    def memory(self) -> int:
        """Free bytes."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a run would go: a node, which of its GPUs (None for its CPUs), and what share of that one."""

    node: str
    gpu: int | None
    share: float

    def __str__(self) -> str:
        if self.gpu is None:
            return f"the CPUs of {self.node}"
        return f"GPU {self.gpu} of {self.node}" + ("" if self.share == 1 else f", {100 * self.share:.0f} % of it")


def share_of(needed: int, hardware: Hardware) -> float:
    """The share of a GPU that so many bytes need, in hundredths; more than 1 where it does not fit."""
    return ceil(STEPS * needed / hardware.usable) / STEPS


def place(needed: int, share: float, hardware: Hardware, nodes: Sequence[Node]) -> Placement | None:
    """The node and GPU that leaves the least unused; None if nothing is free that suffices.

    Args:
        needed: bytes of the run.
        share: of a GPU; ignored on CPUs.
        hardware: what every GPU of the nodes is.
        nodes: what there is.
    """
    if hardware.kind == "cpu":
        fitting = [(node.memory, node.id) for node in nodes if node.memory >= needed and node.cpus > 0]
        return Placement(min(fitting)[1], None, 1.0) if fitting else None
    free = [(left, node.id, gpu) for node in nodes for gpu, left in enumerate(node.gpus) if left >= share]
    if not free:
        return None
    _, name, gpu = min(free)
    return Placement(name, gpu, share)
