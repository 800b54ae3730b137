"""Which examples each optimizer step takes: a function of the step alone, so a run can be taken up at any."""

import math
import random
from collections.abc import Sequence
from typing import Generic, TypeVar

Unit = TypeVar("Unit")


class Order(Generic[Unit]):
    """All units once per epoch, shuffled anew in each; the last step of an epoch takes what is left.

    Args:
        units: what is shuffled: rows of examples, or pairs.
        per_step: how many an optimizer step takes.
        seed: of the shuffling.
    """

    def __init__(self, units: Sequence[Unit], per_step: int, seed: int) -> None:
        self._units = units
        self._per_step = per_step
        self._seed = seed
        self._shuffled: tuple[int, list[int]] = (-1, [])

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass."""
        return math.ceil(len(self._units) / self._per_step)

    def epoch(self, step: int) -> int:
        """The epoch, from 0, that a step (from 0) belongs to."""
        return step // self.steps_per_epoch

    def at(self, step: int) -> list[Unit]:
        """The units of a step, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._shuffled[0] != epoch:
            indices = list(range(len(self._units)))
            random.Random(f"{self._seed}/{epoch}").shuffle(indices)  # noqa: S311 - no secret
            self._shuffled = epoch, indices
        start = place * self._per_step
        return [self._units[index] for index in self._shuffled[1][start : start + self._per_step]]
