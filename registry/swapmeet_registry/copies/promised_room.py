"""Room in a folder that several processes fill: what each is about to write is known to all.

    .room                   whoever counts holds a lock on it
    .SHA256.ID.coming       as large as what a process is about to write, and locked by it until that is written

A lock is taken back even from a process that is killed: then its file is nobody's, and the next that counts removes it.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

LOCK, SUFFIX = ".room", ".coming"


@contextmanager
def counting(root: Path) -> Iterator[None]:
    """Have all others who count wait, of this process and of others."""
    lock = os.open(root / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@dataclass(frozen=True, slots=True)
class Promise:
    """That something will come."""

    path: Path
    handle: int

    def end(self) -> None:
        """It is there, or will not come."""
        self.path.unlink(missing_ok=True)
        os.close(self.handle)


def promise(root: Path, name: str, size: int) -> Promise:
    """Say, while `counting`, that so many bytes will come under a name."""
    path = root / f".{name}.{uuid4().hex}{SUFFIX}"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.ftruncate(handle, size)  # which takes no room itself
    except BaseException:
        os.close(handle)
        raise
    return Promise(path, handle)


def promised(root: Path) -> int:
    """The bytes, while `counting`, that are still to come; not of what is there already under its name."""
    total = 0
    for path in root.glob(f".*{SUFFIX}"):
        with suppress(FileNotFoundError, IsADirectoryError):
            handle = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            except BlockingIOError:
                there = (root / path.name[1:].partition(".")[0]).is_dir()
                total += 0 if there else os.fstat(handle).st_size
            finally:
                os.close(handle)
    return total
