"""Measurements as plain values: counted where things happen, sent between processes, rendered at the gateway.

Counting is an addition to a Python number. Prometheus' own objects are made once per scrape, in the gateway.
"""

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

Kind = Literal["counter", "gauge", "histogram", "summary"]


@dataclass(frozen=True, slots=True)
class Distribution:
    """What a histogram held at one moment.

    Attributes:
        bounds: upper bounds of the buckets, which include them; one more bucket has none.
        counts: values in each bucket, not cumulated.
        sum: of all values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """How many values there are."""
        return sum(self.counts)

    def cumulated(self) -> list[tuple[str, int]]:
        """Prometheus' buckets: each upper bound with the values up to it."""
        names = [*map(str, self.bounds), "+Inf"]
        return list(zip(names, accumulate(self.counts), strict=True))


class Histogram:
    """Counts values in buckets; without bounds it is a plain count and sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...] = ()) -> None:
        assert list(bounds) == sorted(set(bounds)), "bounds ascend"
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, or as many of the same."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def read(self) -> Distribution:
        """What it holds now; other threads may ask."""
        return Distribution(self._bounds, tuple(self._counts), self._sum)


Value = float | Distribution
Points = dict[tuple[str, ...], Value]


@dataclass(frozen=True, slots=True)
class Family:
    """All series of one metric: values by the values of `labels`. A counter's name lacks Prometheus' `_total`."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    points: Points


def single(name: str, kind: Kind, text: str, value: Value) -> Family:
    """A family of one series without labels."""
    return Family(name, kind, text, (), {(): value})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One process's families. `role` becomes the name and `id` the value of a label on all of them."""

    role: Literal["replica", "gateway"]
    id: str
    families: tuple[Family, ...]
