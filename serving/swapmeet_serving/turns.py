"""Threads that do the same thing take turns, and those that do different things do not wait for each other."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Queue:
    lock: threading.Lock = field(default_factory=threading.Lock)
    threads: int = 0


class Turns:
    """A lock for each key, kept only while a thread holds it or waits for it."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many keys are in use."""
        return len(self._queues)

    @contextmanager
    def of(self, key: str) -> Iterator[None]:
        """Be the only thread with this key within the block."""
        with self._lock:
            queue = self._queues.setdefault(key, _Queue())
            queue.threads += 1
        try:
            with queue.lock:
                yield
        finally:
            with self._lock:
                queue.threads -= 1
                if not queue.threads:
                    del self._queues[key]
