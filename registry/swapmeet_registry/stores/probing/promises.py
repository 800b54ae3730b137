"""What a probe tries: named promises, and how writers race."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
Promise = Callable[[], None]
"""Tries a promise; returns if it was kept."""


class Broken(Exception):
    """A promise is not kept."""


class Lacking(Exception):
    """Something that the registry can do without is not offered."""


@dataclass(frozen=True, slots=True)
class Promises:
    """With their names: those to a single writer, and those to several at once."""

    alone: tuple[tuple[str, Promise], ...]
    races: tuple[tuple[str, Promise], ...]


def require(kept: bool, seen: str) -> None:
    """Say what was seen unless a promise was kept.

    Raises:
        Broken: it was not.
    """
    if not kept:
        raise Broken(seen)


def at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """What calls give that begin at the same moment, each in a thread of its own."""
    start = threading.Barrier(len(calls))

    def begin(call: Callable[[], T]) -> T:
        start.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(begin, calls))
