"""Names that were not there a moment ago: a flood of them must not cost the registry a look-up each."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from swapmeet.gateway.single_flight import SingleFlight
from swapmeet_registry import NotFound

Found = TypeVar("Found")
SECONDS = 1.0
"""How long a name stays unknown: no longer, because from then on a publish is seen."""
MOST = 4096


class UnknownModels:
    """The names that a look-up did not find within the last `seconds`, at most `most` of them; for any thread.

    What is found is never remembered, so an alias that moves and a version that is yanked count from the next look-up.
    Of those who ask for one name at once, one looks.
    """

    def __init__(self, seconds: float = SECONDS, most: int = MOST, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._most = most
        self._clock = clock
        self._known: OrderedDict[str, tuple[str, float]] = OrderedDict()  # what to say and until when, oldest first
        self._lock = threading.Lock()
        self._flights = SingleFlight()

    def __len__(self) -> int:
        return len(self._known)

    def look_up(self, name: str, look: Callable[[str], Found]) -> Found:
        """What `look` gives for a name, unless it did not find it a moment ago.

        Raises:
            NotFound: there was nothing, now or then; the message is the same.
        """
        self._check(name)
        return self._flights.look_up(name, lambda: self._look(name, look))

    def _look(self, name: str, look: Callable[[str], Found]) -> Found:
        self._check(name)  # somebody may have looked in the meantime
        try:
            return look(name)
        except NotFound as error:
            self._remember(name, str(error))
            raise

    def _check(self, name: str) -> None:
        with self._lock:
            message, until = self._known.get(name, ("", 0.0))
        if message and self._clock() < until:
            raise NotFound(message)

    def _remember(self, name: str, message: str) -> None:
        with self._lock:
            self._known[name] = (message, self._clock() + self._seconds)
            self._known.move_to_end(name)
            if len(self._known) > self._most:
                self._known.popitem(last=False)
