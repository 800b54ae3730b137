"""What the micro-batches of a run look like: how long they are, and how much of them is trained."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from swapmeet_training.loop.packing import pack
from swapmeet_training.plan.settings import RunSettings

MANY_UNITS = 50_000
"""How many examples are put into batches to see what batches look like."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a batch: all its tokens, those that are trained, and the first of them that is."""

    tokens: int
    trained: int
    first: int

    def cut(self, longest: int) -> "Row":
        """The row without what stands behind its first `longest` tokens."""
        tokens = min(self.tokens, longest)
        return Row(tokens, min(self.trained, tokens), min(self.first, tokens - 1))


Unit = tuple[Row, ...]
"""What is shuffled: one row, or with DPO the two of a pair."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch of `rows` padded to `length`, or an upper bound of several.

    `positions` is how many places in a row have a trained token in some row; the output head runs there only.
    `masked` says that attention needs a mask besides the causal one, because rows are padded or packed.
    """

    rows: int
    length: int
    tokens: int
    trained: int
    positions: int
    masked: bool

    @property
    def padded(self) -> int:
        """Tokens with padding."""
        return self.rows * self.length

    @classmethod
    def of(cls, units: Iterable[Unit], packed: bool = False) -> "Batch":
        """The batch of some units."""
        rows = [row for unit in units for row in unit]
        lengths = [row.tokens for row in rows]
        longest = max(lengths)
        return cls(
            rows=len(rows),
            length=longest,
            tokens=sum(lengths),
            trained=sum(row.trained for row in rows),
            positions=longest - min(max(row.first, 1) for row in rows),
            masked=packed or min(lengths) < longest,
        )

    @classmethod
    def bound(cls, batches: Sequence["Batch"]) -> "Batch":
        """A batch that is at least as large as each, in every respect."""
        return cls(
            rows=max(batch.rows for batch in batches),
            length=max(batch.length for batch in batches),
            tokens=max(batch.tokens for batch in batches),
            trained=max(batch.trained for batch in batches),
            positions=max(batch.positions for batch in batches),
            masked=any(batch.masked for batch in batches),
        )


def packed_rows(rows: Sequence[Row], capacity: int) -> list[Unit]:
    """Rows of up to `capacity` tokens, made of examples that see nothing of each other."""
    return [
        (Row(sum(rows[i].tokens for i in one), sum(rows[i].trained for i in one), rows[one[0]].first),)
        for one in pack([row.tokens for row in rows], capacity)
    ]


def micro_batches(units: Sequence[Unit], settings: RunSettings, steps: int) -> list[Batch]:
    """The micro-batches of a run's first steps, in the order and of the make in which it takes them.

    A step takes its units from all, shuffled anew in every epoch, and splits them longest first. Where a run has more
    steps than `MANY_UNITS` allow to look at, the longest unit is in the last batch none the less.
    """
    batches: list[Batch] = []
    per_epoch = -(-len(units) // settings.per_step)
    looked_at = min(steps, max(1, MANY_UNITS // settings.per_step))
    for epoch in range(-(-looked_at // per_epoch)):
        order = list(range(len(units)))
        random.Random(f"{settings.seed}/{epoch}").shuffle(order)  # noqa: S311 - nothing secret
        for place in range(min(per_epoch, looked_at - epoch * per_epoch)):
            taken = order[place * settings.per_step : (place + 1) * settings.per_step]
            batches += _split([units[index] for index in taken], settings)
    if looked_at < steps:
        longest = sorted(units, key=_length, reverse=True)[: settings.batch_size]
        batches.append(Batch.of(longest, settings.packing))
    return batches


def _split(units: list[Unit], settings: RunSettings) -> list[Batch]:
    units.sort(key=_length, reverse=True)
    starts = range(0, len(units), settings.batch_size)
    return [Batch.of(units[start : start + settings.batch_size], settings.packing) for start in starts]


def _length(unit: Unit) -> int:
    return sum(row.tokens for row in unit)
