"""What takes longer than a round of the scheduler may: done in threads, each once at a time, and looked for again."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar, cast

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0


class Chores:
    """Work by name. What fails is tried again after a pause, when somebody asks for it again.

    Args:
        workers: threads.
        done: called in one of them whenever there is something to ask for.
    """

    def __init__(self, workers: int = 4, done: Callable[[], object] = lambda: None) -> None:
        self._done = done
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="chore")
        self._under_way: dict[str, Future[Any]] = {}
        self._pauses: dict[str, tuple[float, float]] = {}

    def result(self, name: str, work: Callable[[], T]) -> T | None:
        """What the work gave; None while it is under way, or pauses after it failed.

        Raises:
            Exception: what the work raised, once each time that it failed.
        """
        until, pause = self._pauses.get(name, (0.0, FIRST_PAUSE))
        if time.monotonic() < until:
            return None
        if name not in self._under_way:
            self._under_way[name] = self._pool.submit(work)
            self._under_way[name].add_done_callback(lambda _: self._done())
        if not self._under_way[name].done():
            return None
        future = self._under_way.pop(name)
        if future.exception() is not None:
            self._pauses[name] = time.monotonic() + pause, min(pause * 2, LONGEST_PAUSE)
        else:
            self._pauses.pop(name, None)
        return cast(T, future.result())

    def finish(self, beginning: str) -> None:
        """Wait until nothing is under way whose name begins so, however it ends; its results are let go of."""
        for name in [name for name in list(self._under_way) if name.startswith(beginning)]:
            if (future := self._under_way.pop(name, None)) is not None:
                future.exception()

    def begin(self, work: Callable[[], object]) -> None:
        """Do something whose end nobody waits for."""
        self._pool.submit(work)

    def close(self) -> None:
        """Start nothing more, and wait for what is under way."""
        self._pool.shutdown(cancel_futures=True)
