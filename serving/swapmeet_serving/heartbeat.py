"""Tells an engine that computes from one that is stuck in a step. Waiting for work and loading are no steps."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from swapmeet_serving.errors import EngineDead


class Heartbeat:
    """Written by the engine's thread, read by any other.

    Args:
        limit: seconds that one step may take.
        clock: monotonic, in seconds.
    """

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._began: float | None = None
        self._rated = (clock(), 0)
        self.steps = 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around each step."""
        self._began = self._clock()
        try:
            yield
        finally:
            self._began = None
            self.steps += 1

    def check(self) -> None:
        """Nothing, unless the engine is stuck.

        Raises:
            EngineDead: the step under way takes longer than the limit.
        """
        began = self._began  # once, because the engine's thread goes on
        if began is not None and self._clock() - began > self._limit:
            raise EngineDead(f"A step of the engine takes more than {self._limit:g} s; this replica must be replaced.")

    def rate(self) -> float:
        """Steps a second since the last call; only one thread may ask."""
        (then, steps), self._rated = self._rated, (self._clock(), self.steps)
        elapsed = self._rated[0] - then
        return (self._rated[1] - steps) / elapsed if elapsed > 0 else 0.0
