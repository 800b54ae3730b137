"""Those who ask for the same at once share one answer."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

Found = TypeVar("Found")


@dataclass(slots=True)
class _Flight:
    turn: threading.Lock = field(default_factory=threading.Lock)
    members: int = 0
    begun: int = 0
    ended: int = 0
    outcome: Future[Any] = field(default_factory=Future)
    """Of the look-up that ended last."""


class SingleFlight:
    """Look-ups by key, one of each at a time; for threads.

    Whoever comes while one is under way waits for the next, which all who wait share, also where it raises: so an
    answer is never older than the question, and nobody waits for more than two look-ups.
    """

    def __init__(self) -> None:
        self._flights: dict[str, _Flight] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many keys are being looked up."""
        return len(self._flights)

    def look_up(self, key: str, look: Callable[[], Found]) -> Found:
        """What `look` gives, called here or by another thread since this call began."""
        with self._member_of(key) as flight:
            before = flight.begun
            with flight.turn:
                if flight.ended <= before:
                    flight.begun += 1
                    flight.outcome = _outcome(look)
                    flight.ended = flight.begun
                found: Found = flight.outcome.result()
                return found

    @contextmanager
    def _member_of(self, key: str) -> Iterator[_Flight]:
        with self._lock:
            flight = self._flights.setdefault(key, _Flight())
            flight.members += 1
        try:
            yield flight
        finally:
            with self._lock:
                flight.members -= 1
                if not flight.members:
                    del self._flights[key]


def _outcome(look: Callable[[], Found]) -> Future[Found]:
    outcome: Future[Found] = Future()
    try:
        outcome.set_result(look())
    except BaseException as error:
        outcome.set_exception(error)
    return outcome
