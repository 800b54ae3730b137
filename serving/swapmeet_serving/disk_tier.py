"""Folders within a budget of disk: those longest unused go, whichever of several processes used them.

Processes share the folders and nothing else: when a folder was last used is its own time of modification, and one
that goes is renamed first, so that it is either there as a whole or not at all. What a process that was killed left
half written or half deleted has a hidden name, by which it is found.
"""

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from swapmeet_registry.stores.files import os_errors

RECENT_SECONDS = 10.0
"""A folder used so shortly ago stays, because it probably is being read."""
ABANDONED_SECONDS = 3600.0
"""A half-written folder without a new file for so long is nobody's any more."""
GOING = ".going"


class DiskTier:
    """The folders in `root`, which all together take `budget` bytes at most.

    More only where those just used, which stay anyway, take more, or while several processes write at once.
    """

    def __init__(self, root: Path, budget: int, clock: Callable[[], float] = time.time) -> None:
        self.root = root
        self._budget = budget
        self._clock = clock
        self._coming = 0  # bytes that this process is writing
        self._lock = threading.Lock()

    def folders(self) -> list[str]:
        """The names of the folders that are there."""
        with contextlib.suppress(FileNotFoundError):
            return [name for name in os.listdir(self.root) if not name.startswith(".")]
        return []

    def use(self, folder: Path) -> bool:
        """Note that a folder is used now; False if it is not there."""
        now = self._clock()
        with os_errors(f"write {folder}"):
            try:
                os.utime(folder, (now, now))
            except FileNotFoundError:
                return False
        return True

    def remove(self, folder: Path) -> None:
        """Delete a folder, at one stroke for all others; somebody else may have."""
        going = self.root / f".{folder.name}.{uuid4().hex}{GOING}"
        with contextlib.suppress(FileNotFoundError):
            folder.rename(going)
            shutil.rmtree(going, ignore_errors=True)

    @contextmanager
    def writing(self) -> Iterator[Callable[[int], None]]:
        """Gives what makes room for so many bytes that the block is going to write."""
        coming: list[int] = []

        def make_room(size: int) -> None:
            coming.append(size)
            with self._lock:
                self._coming += size
            self.make_room()

        try:
            yield make_room
        finally:
            with self._lock:
                self._coming -= sum(coming)

    def make_room(self) -> None:
        """Delete what is beyond the budget, with what is being written, and what others left behind."""
        self._clear_away()
        folders = sorted((used, name, size) for name in self.folders() for used, size in [_measure(self.root / name)])
        excess = sum(size for _, _, size in folders) + self._coming - self._budget
        for used, name, size in folders:
            if excess <= 0 or used > self._clock() - RECENT_SECONDS:
                return
            if _measure(self.root / name)[0] <= used:  # nobody came for it in the meantime
                self.remove(self.root / name)
                excess -= size

    def _clear_away(self) -> None:
        for name in os.listdir(self.root):
            left = self.root / name
            abandoned = name.endswith(GOING) or _measure(left)[0] < self._clock() - ABANDONED_SECONDS
            if name.startswith(".") and abandoned:
                shutil.rmtree(left, ignore_errors=True)


def _measure(folder: Path) -> tuple[float, int]:
    """When it was last used, and its bytes; nothing at all if it goes meanwhile."""
    used, size = 0.0, 0
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        used = folder.stat().st_mtime
        with os.scandir(folder) as files:
            size = sum(file.stat().st_size for file in files)
    return used, size
