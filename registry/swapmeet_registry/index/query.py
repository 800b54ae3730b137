"""What is asked of the index, and what it answers."""

import base64
import binascii
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self, get_args

from swapmeet_registry.errors import InvalidQuery

Sort = Literal["relevance", "downloads", "likes", "date"]
MOST = 200
"""Results on a page."""
MOST_TEXT, MOST_FILTERS, LARGEST = 1000, 20, 2**62
_METRIC = re.compile(r"\s*([^<>=]+?)\s*(<=|>=|<|>|=)\s*(\S+)\s*", re.DOTALL)
_KEYS = {"relevance": float, "downloads": int, "likes": int, "date": str}


@dataclass(frozen=True, slots=True)
class MetricRange:
    """What a metric must be, such as `accuracy>=0.9`."""

    name: str
    relation: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `NAME<=NUMBER`, or with `<`, `>=`, `>` or `=`.

        Raises:
            InvalidQuery: it is none.
        """
        found = _METRIC.fullmatch(text)
        try:
            value = float(found[3]) if found else math.nan
        except ValueError:
            value = math.nan
        if found is None or not math.isfinite(value):
            raise InvalidQuery(f"{text[:100]!r} is no range of a metric. Write one such as eval_loss<=0.9.")
        return cls(found[1], found[2], value)


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for. Filters that are None, or empty, let everything pass; all others must hold.

    Attributes:
        words: each must begin a word of the name, the tags, the base, the purpose, or the card's text.
        base: a base's name or weights digest.
        tags: all of them.
        owner: a tenant.
        size_min: bytes of all files.
        metrics: ranges, such as `eval_loss<=0.9`.
        sort: best first; without words relevance is downloads, then date.
        versions: find versions, and not adapters by their newest usable version.
        after: the `next` of the page before.

    Raises:
        InvalidQuery: something is wrong; all of it is told.
    """

    words: str = ""
    base: str | None = None
    task: str | None = None
    tags: tuple[str, ...] = ()
    license: str | None = None
    owner: str | None = None
    rank_min: int | None = None
    rank_max: int | None = None
    size_min: int | None = None
    size_max: int | None = None
    metrics: tuple[str, ...] = ()
    sort: Sort = "relevance"
    versions: bool = False
    after: str | None = None
    limit: int = 20

    def __post_init__(self) -> None:
        if mistakes := [*self._mistakes()]:
            raise InvalidQuery(" ".join(mistakes))

    @property
    def ranges(self) -> list[MetricRange]:
        """The metrics' ranges."""
        return [MetricRange.parse(text) for text in self.metrics]

    @property
    def place(self) -> tuple[float | int | str, str, int] | None:
        """Behind which result to go on: its sort key, its date and its row."""
        return None if self.after is None else _place(self.after, self.sort)

    def cursor(self, key: float | str, created_at: str, row: int) -> str:
        """The `after` of the page that follows a result."""
        data = json.dumps([self.sort, key, created_at, row], separators=(",", ":"))
        return base64.urlsafe_b64encode(data.encode()).decode().rstrip("=")

    def _mistakes(self) -> Iterator[str]:
        yield from self._wrong_texts()
        for name in ("rank_min", "rank_max", "size_min", "size_max"):
            if (number := getattr(self, name)) is not None and not 0 <= number <= LARGEST:
                yield f"{name} must be a number from 0 to {LARGEST}."
        if self.sort not in get_args(Sort):
            yield f"sort must be one of {', '.join(get_args(Sort))}."
        elif self.after is not None and not _is_place(self.after, self.sort):
            yield "after must be what the page before gave as next, in a search that is sorted alike."
        if not 1 <= self.limit <= MOST:
            yield f"limit must be a number from 1 to {MOST}."

    def _wrong_texts(self) -> Iterator[str]:
        for name in ("words", "base", "task", "license", "owner"):
            if (text := getattr(self, name)) is not None and not _sound(text):
                yield f"{name} must be a text of at most {MOST_TEXT} characters."
        for name in ("tags", "metrics"):
            several = getattr(self, name)
            if len(several) > MOST_FILTERS or not all(map(_sound, several)):
                yield f"{name} must be at most {MOST_FILTERS} texts of at most {MOST_TEXT} characters."
        for text in self.metrics[:MOST_FILTERS]:
            try:
                MetricRange.parse(text)
            except InvalidQuery as error:
                yield str(error)


@dataclass(frozen=True, slots=True)
class Hit:
    """A version that was found.

    Attributes:
        base: the name of the base that it was trained on.
        weights: that base's weights digest.
        targets: module name suffixes, or one pattern.
        size: bytes of all files.
        parameters: number of adapter weights.
        visibility: `private`, `shared` or `public`.
        withdrawn: `yanked` or `recalled`, where it is found by a file.
    """

    name: str
    version: int
    digest: str
    created_at: str
    base: str
    weights: str
    license: str | None
    task: str | None
    tags: tuple[str, ...]
    rank: int
    targets: tuple[str, ...] | str
    size: int
    parameters: int
    metrics: dict[str, float]
    purpose: str | None
    visibility: str
    likes: int = 0
    downloads: int = 0
    withdrawn: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Results, best first, and what to ask for `after` to get more; None where there are no more."""

    hits: tuple[Hit, ...]
    next: str | None = None


def _place(text: str, sort: str) -> tuple[float | int | str, str, int]:
    """Read a cursor.

    Raises:
        ValueError: it is none for this sort.
    """
    try:
        data = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        of, key, created_at, row = json.loads(data)
    except (binascii.Error, TypeError, RecursionError) as error:
        raise ValueError(text) from error
    good = of == sort and type(created_at) is str and type(row) is int and abs(row) <= LARGEST
    if not good or type(key) not in (_KEYS[sort], int if sort == "relevance" else _KEYS[sort]):
        raise ValueError(text)
    if not _sound(created_at) or not (_sound(key) if isinstance(key, str) else abs(key) <= LARGEST):
        raise ValueError(text)
    return key, created_at, row


def _is_place(text: str, sort: str) -> bool:
    try:
        _place(text, sort)
    except ValueError:
        return False
    return True


def _sound(text: str) -> bool:
    """Whether a database takes a text: not too long, no zero byte, valid Unicode."""
    return len(text) <= MOST_TEXT and "\0" not in text and not any("\ud800" <= each <= "\udfff" for each in text)
