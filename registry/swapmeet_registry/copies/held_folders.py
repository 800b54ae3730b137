"""Versions in folders named by their digest, for a process that reads them again whenever it likes.

A folder that was handed out is held until its process ends, by a lock that the system takes back even from one that is
killed. Others, of this process or of another, delete only what nobody holds, oldest use first.
"""

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from uuid import uuid4

from swapmeet_registry.copies.promised_room import SUFFIX, Promise, counting, promise, promised
from swapmeet_registry.errors import Refused, StoreFull
from swapmeet_registry.fingerprint import Fingerprint
from swapmeet_registry.registry import Registry
from swapmeet_registry.stores.files import os_errors
from swapmeet_registry.version import Version

PREFIX = "sha256-"
GOING = ".going"
ABANDONED_SECONDS = 3600.0
"""A half-written folder in which nothing was written for so long is nobody's any more."""


class HeldFolders:
    """Folders `ROOT/sha256-HEX` of verified files; several processes may share a root.

    Args:
        root: where the folders are.
        registry: where versions come from.
        budget: bytes that all folders together may take, whichever process wrote them or is about to.
    """

    def __init__(self, root: Path, registry: Registry, budget: int) -> None:
        self._root, self._registry, self._budget = root.resolve(), registry, budget
        self._held: dict[str, int] = {}
        self._coming: dict[str, Promise] = {}  # what this process is fetching, by digest
        self._turns: dict[str, _Turn] = {}
        self._changing = threading.Lock()

    def fetch(self, version: Version, base: Fingerprint) -> Path:
        """The folder of a version, which stays as it is until this process ends.

        Of those who ask for one version at once, one fetches.

        Raises:
            BaseMismatch: it was trained on other weights than this base's.
            Corrupt: its bytes are not those of its digest.
            StoreFull: all that is there is in use, and the rest of the budget is too small.
        """
        folder = self._root / version.digest.replace(":", "-")
        with self._turn(version.digest):
            while version.digest not in self._held:
                self._pull(version, folder, base)
                self._hold(version, folder)
        return folder

    def close(self) -> None:
        """Hold nothing any more."""
        while self._held:
            os.close(self._held.popitem()[1])

    @contextmanager
    def _turn(self, digest: str) -> Iterator[None]:
        """Of those of this process who want one folder, one after the other."""
        with self._changing:
            turn = self._turns.setdefault(digest, _Turn())
            turn.wanted += 1
        try:
            with turn.lock:
                yield
        finally:
            with self._changing:
                turn.wanted -= 1
                if not turn.wanted:
                    del self._turns[digest]

    def _pull(self, version: Version, folder: Path, base: Fingerprint) -> None:
        def pull() -> None:
            make_room = partial(self._make_room, version.digest)
            self._registry.pull(version, folder, base=base, make_room=make_room)

        try:
            pull()
        except Refused:  # something changed its files since
            if not self._remove(folder):
                raise
            pull()
        finally:
            self._forget(version.digest)

    def _hold(self, version: Version, folder: Path) -> None:
        """Hold a folder, unless another process just removed it."""
        with os_errors(f"read {folder}"), suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH)
                if os.path.samestat(os.fstat(lock), folder.stat()):
                    os.utime(folder)
                    self._held[version.digest] = lock
            finally:
                if version.digest not in self._held:
                    os.close(lock)

    def _make_room(self, digest: str, size: int) -> None:
        """Delete what nobody holds until there is room for so many bytes more."""
        self._forget(digest)
        with os_errors(f"write {self._root}"), counting(self._made()):
            self._clear_away()
            found = sorted((_used(path), path, _bytes(path)) for path in self._root.glob(f"{PREFIX}*"))
            excess = sum(each for _, _, each in found) + promised(self._root) + size - self._budget
            for _, path, each in found:
                if excess > 0 and self._remove(path):
                    excess -= each
            if excess <= 0:
                self._coming[digest] = promise(self._root, f"{PREFIX}{digest.removeprefix('sha256:')}", size)
        if excess > 0:
            raise StoreFull(
                f"{self._root} may take {self._budget:,} bytes, and the adapters in use leave {excess:,} too few for "
                "another. Allow more, or restart the server that uses them."
            )

    def _made(self) -> Path:
        self._root.mkdir(parents=True, exist_ok=True)
        return self._root

    def _forget(self, digest: str) -> None:
        """Take back that a version is coming: it is there, or it is not."""
        if (coming := self._coming.pop(digest, None)) is not None:
            coming.end()

    def _clear_away(self) -> None:
        """Delete what killed processes left half written or half deleted."""
        for path in self._root.glob(f".{PREFIX}*"):
            if path.suffix == SUFFIX:  # of which `promised` knows
                continue
            if path.suffix == GOING or _written(path) < time.time() - ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)

    def _remove(self, folder: Path) -> bool:
        """Delete a folder, for others at one stroke; False where somebody holds it."""
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(lock), folder.stat()):  # another, which somebody may hold, took its place
                return self._remove(folder)
            going = folder.with_name(f".{folder.name}.{uuid4().hex}{GOING}")
            folder.rename(going)
            shutil.rmtree(going, ignore_errors=True)
        except BlockingIOError:
            return False
        except FileNotFoundError:
            return True
        finally:
            os.close(lock)
        return True


class _Turn:
    def __init__(self) -> None:
        self.lock, self.wanted = threading.Lock(), 0


def _used(path: Path) -> float:
    with suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0


def _written(folder: Path) -> float:
    """When a folder, or a file in it, was changed last."""
    return max(map(_used, (folder, *folder.glob("*"))))


def _bytes(folder: Path) -> int:
    total = 0
    with suppress(FileNotFoundError), os.scandir(folder) as files:
        for file in files:
            total += file.stat(follow_symlinks=False).st_size
    return total
