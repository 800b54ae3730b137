"""How long a file's examples are: all of them tokenized where they are few, a sample of them where they are many."""

import heapq
import random
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from swapmeet_training.data.dataset import data_files, load_dataset
from swapmeet_training.data.masking import IGNORED, Masked, Sequence, sequences_of
from swapmeet_training.errors import DataError
from swapmeet_training.plan.batches import Row, Unit
from swapmeet_training.spec import FineTune

FEW = 2000
"""Examples up to which all are tokenized."""

SAMPLE, LONGEST = 1000, 32
"""Of more than `FEW`, how many drawn at random are tokenized, and how many of the longest lines."""

LINES = (".jsonl", ".json", ".txt", "")
"""Endings of files with an example a line; of others, all examples are tokenized."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """The lengths of a file's examples.

    Attributes:
        units: of all examples, or of a sample drawn at random.
        examples: how many the file has.
        tokens: how many tokens it has.
        error: of `tokens`, as a share of it, which 95 of 100 samples keep to; 0 where all were counted.
        longest: the longest examples, where `units` is a sample.
    """

    units: tuple[Unit, ...]
    examples: int
    tokens: int
    error: float = 0.0
    longest: tuple[Unit, ...] = ()

    @classmethod
    def exact(cls, units: tuple[Unit, ...]) -> "Lengths":
        """Of examples all of which are known."""
        return cls(units, len(units), sum(map(size, units)))

    @property
    def whole(self) -> bool:
        """Whether every example was looked at."""
        return self.examples == len(self.units)


def size(unit: Unit) -> int:
    """Tokens of a unit."""
    return sum(row.tokens for row in unit)


def lengths_of(spec: FineTune) -> tuple[Lengths, Lengths | None]:
    """The lengths of a run's training and held-out data, tokenized as the run will.

    Raises:
        DataError, TemplateError: as `load_dataset`, of all examples that are looked at.
        BaseInvalid: the base has no tokenizer that loads.
    """
    lines = [_line_sizes(path) for path in data_files(spec)]
    if max(map(len, lines)) <= FEW:
        dataset = load_dataset(spec)
        held_out = Lengths.exact(_units(dataset.held_out)) if spec.validation else None
        return Lengths.exact(_units(dataset.training)), held_out
    alone = [spec.model_copy(update={"data": path, "validation": None}) for path in data_files(spec)]
    found = [_lengths(one, sizes) for one, sizes in zip(alone, lines, strict=True)]
    return found[0], found[1] if spec.validation else None


def _lengths(spec: FineTune, lines: list[tuple[int, int]]) -> Lengths:
    """Of one file, whose lines' numbers and bytes are known."""
    if len(lines) <= FEW:
        return Lengths.exact(_units(load_dataset(spec).training))
    longest = {number for _, number in heapq.nlargest(LONGEST, ((size, number) for number, size in lines))}
    rest = [line for line in lines if line[0] not in longest]
    drawn = dict(random.Random(spec.seed).sample(rest, SAMPLE))  # noqa: S311 - nothing secret
    of_line = _some(spec, longest | drawn.keys())
    pairs = [(bytes_, sum(map(size, of_line[number]))) for number, bytes_ in drawn.items()]
    tokens, error = _estimated(pairs, sum(bytes_ for _, bytes_ in rest), len(rest))
    units = tuple(unit for number in drawn for unit in of_line[number])
    greatest = sorted((unit for number in longest for unit in of_line[number]), key=size, reverse=True)
    total = sum(map(size, greatest)) + tokens
    return Lengths(
        units=units,
        examples=round(len(rest) * len(units) / len(drawn)) + len(greatest),
        tokens=round(total),
        error=error / total,
        longest=tuple(greatest),
    )


def _estimated(pairs: list[tuple[int, int]], size: int, count: int) -> tuple[float, float]:
    """Tokens of `count` lines with `size` bytes in all, from (bytes, tokens) of some, and the 95 % error of it."""
    ratio = sum(tokens for _, tokens in pairs) / sum(bytes_ for bytes_, _ in pairs)
    deviations = sum((tokens - ratio * bytes_) ** 2 for bytes_, tokens in pairs)
    variance = deviations / (len(pairs) - 1)
    return ratio * size, 1.96 * count * sqrt((1 - len(pairs) / count) * variance / len(pairs))


def _line_sizes(path: Path) -> list[tuple[int, int]]:
    """Number (from 1) and bytes of every line that is not blank; none of what is not made of lines."""
    if not path.is_file() or path.suffix not in LINES:
        return []
    return [(number, len(line)) for number, line in _lines(path) if line.strip()]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as stream:
            yield from enumerate(stream, 1)
    except OSError as error:
        raise DataError(f"{path} can not be read ({error.strerror}). Name a JSONL file.") from error


def _some(spec: FineTune, wanted: set[int]) -> dict[int, list[Unit]]:
    """The units of some lines, by number: a copy of the file without the other lines' text keeps the numbers."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / spec.data.name
        with copy.open("wb") as stream:
            stream.writelines(line if number in wanted else b"\n" for number, line in _lines(spec.data))
        found = load_dataset(spec.model_copy(update={"data": copy})).training
    of_line: dict[int, list[Unit]] = {}
    for item in found:
        of_line.setdefault(item.line, []).append(_unit(item))
    return of_line


def _units(items: Iterable[Masked]) -> tuple[Unit, ...]:
    return tuple(map(_unit, items))


def _unit(item: Masked) -> Unit:
    """The row of a sequence, or the two of a pair."""
    return tuple(map(_row, sequences_of(item)))


def _row(sequence: Sequence) -> Row:
    trained = [place for place, label in enumerate(sequence.labels) if label != IGNORED and place]
    return Row(len(sequence.tokens), len(trained), trained[0] if trained else len(sequence.tokens) - 1)
