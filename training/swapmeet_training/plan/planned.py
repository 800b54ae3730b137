"""A run as far as it is known before it starts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from typing import Any

from swapmeet_training.plan.batches import Batch, Unit, micro_batches, packed_rows
from swapmeet_training.plan.duration import Work, evaluation_work, training_work
from swapmeet_training.plan.hardware import Hardware
from swapmeet_training.plan.lengths import Lengths, size
from swapmeet_training.plan.memory import Memory, peak_memory
from swapmeet_training.plan.settings import RunSettings
from swapmeet_training.plan.shape import BaseShape


@dataclass(frozen=True)
class Planned:
    """A run as far as it is known before it starts; everything else follows."""

    shape: BaseShape
    settings: RunSettings
    lengths: Lengths
    hardware: Hardware
    held_out: Lengths | None = None

    def having(self, **changes: Any) -> "Planned":
        """The same run with other settings."""
        return replace(self, settings=replace(self.settings, **changes))

    def cut(self, longest: int) -> "Planned":
        """The same run on the same examples, none of them longer than so many tokens."""
        shorter = replace(
            self.lengths, units=_cut(self.lengths.units, longest), longest=_cut(self.lengths.longest, longest)
        )
        run = self.having(max_length=longest)
        return replace(run, lengths=shorter, held_out=None)

    @cached_property
    def units(self) -> Sequence[Unit]:
        """What is shuffled: examples, pairs, or with packing rows of examples."""
        return _units(self.lengths.units, self.settings)

    @property
    def count(self) -> int:
        """How many units one pass over the data has."""
        return ceil(len(self.units) * self.lengths.examples / len(self.lengths.units))

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.settings.max_steps or ceil(self.settings.epochs * self.steps_per_epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the data."""
        return ceil(self.count / self.settings.per_step)

    @cached_property
    def batches(self) -> list[Batch]:
        """Micro-batches such as the run's; the largest are among them."""
        batches = micro_batches(self.units, self.settings, self.steps)
        if self.lengths.longest:
            longest = _units(self.lengths.longest, self.settings)
            batches.append(Batch.of(longest[: self.settings.batch_size], self.settings.packing))
        return batches

    @cached_property
    def evaluated(self) -> list[Batch]:
        """The micro-batches of an evaluation, or of as much of it as was looked at."""
        if self.held_out is None:
            return []
        units = sorted(_units((*self.held_out.units, *self.held_out.longest), self.settings), key=size)
        starts = range(0, len(units), self.settings.batch_size)
        return [Batch.of(units[start : start + self.settings.batch_size], self.settings.packing) for start in starts]

    @cached_property
    def memory(self) -> Memory:
        """The peak, by part."""
        return peak_memory(
            self.shape,
            self.settings,
            Batch.bound(self.batches),
            self.hardware.kind,
            self.hardware.overhead,
            Batch.bound(self.evaluated) if self.evaluated else None,
        )

    @property
    def tokens(self) -> int:
        """All tokens but padding that the run trains on, its epochs together."""
        return round(self.lengths.tokens * self.steps / self.steps_per_epoch)

    @property
    def padded(self) -> int:
        """The same with padding."""
        seen = sum(batch.tokens for batch in self.batches)
        return round(self.tokens * sum(batch.padded for batch in self.batches) / seen)

    @cached_property
    def computing(self) -> float:
        """Seconds of training and evaluation."""
        seen = sum(batch.tokens for batch in self.batches)
        trained = _sum(training_work(self.shape, self.settings, batch) for batch in self.batches)
        work = trained.times(self.tokens / seen)
        if self.held_out is not None:
            passes = ceil(self.steps / (self.settings.eval_every or self.steps_per_epoch))
            once = _sum(evaluation_work(self.shape, self.settings, batch) for batch in self.evaluated)
            work += once.times(passes * self.held_out.examples / len(self.held_out.units))
        return work.seconds(self.hardware)


def _units(units: Sequence[Unit], settings: RunSettings) -> Sequence[Unit]:
    return packed_rows([row for unit in units for row in unit], settings.max_length) if settings.packing else units


def _cut(units: Sequence[Unit], longest: int) -> tuple[Unit, ...]:
    return tuple(tuple(row.cut(longest) for row in unit) for unit in units)


def _sum(works: Iterable[Work]) -> Work:
    return sum(works, start=Work(0.0, 0.0))
