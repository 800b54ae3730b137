"""Folders for what an attempt needs on its machine: gone with it, and those of killed ones with the next."""

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRATCH = "scratch"
"""Where in the home they are."""


@contextmanager
def scratch_folder(root: Path, name: str) -> Iterator[Path]:
    """An empty folder within the block. A lock, which goes with its process, tells that it is in use.

    Args:
        root: where they all are; made if missing.
        name: of an attempt, never used twice at once.
    """
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir()
        try:
            yield root / name
        finally:
            _remove(root, name)


def _sweep(root: Path) -> None:
    """Remove what killed processes left."""
    for path in root.glob("*.lock"):
        with contextlib.suppress(OSError), path.open() as lock:  # in use, or another process is sweeping it
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(root, path.stem)


def _remove(root: Path, name: str) -> None:
    shutil.rmtree(root / name, ignore_errors=True)
    (root / f"{name}.lock").unlink(missing_ok=True)
