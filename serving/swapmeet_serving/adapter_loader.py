"""Background threads that fetch adapters and read their weights, one flight per adapter."""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any


class AdapterLoader:
    """Runs jobs on daemon threads and keeps what they gave until `finished` is asked.

    A job that never returns holds up its own thread and nothing else, not even the process's end.

    Args:
        threads: how many.
        wake: called after each job.
        prepare: called first on each thread.
    """

    def __init__(self, threads: int, wake: Callable[[], None], prepare: Callable[[], None]) -> None:
        self._jobs: SimpleQueue[tuple[str, Callable[[], Any]] | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._wake = wake
        self._prepare = prepare
        self._threads = [
            threading.Thread(target=self._work, name=f"adapter-loader-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def start(self, identity: str, job: Callable[[], Any]) -> None:
        """Run a job for an adapter in the background. The caller sees to it that there is one at a time."""
        self._jobs.put((identity, job))

    def finished(self) -> list[tuple[str, Any]]:
        """Identity and result, or the exception raised, of every job that ended since the last call."""
        results = []
        while True:
            try:
                results.append(self._done.get_nowait())
            except Empty:
                return results

    def close(self) -> None:
        """Let every thread end once its present job has."""
        for _ in self._threads:
            self._jobs.put(None)

    def _work(self) -> None:
        self._prepare()
        while (task := self._jobs.get()) is not None:
            identity, job = task
            try:
                result = job()
            except Exception as error:
                result = error
            self._done.put((identity, result))
            self._wake()
