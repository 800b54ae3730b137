"""An index in the user's cache, for whoever searches a registry without a server."""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from swapmeet_registry.errors import IndexFailed
from swapmeet_registry.index.index import Index

if TYPE_CHECKING:
    from swapmeet_registry.registry import Registry

T = TypeVar("T")
PARTS = ("", "-wal", "-shm")


def open_index(registry: "Registry", ask: Callable[[Index], T], folder: Path | None = None) -> T:
    """What `ask` finds in an index of the registry as it is now.

    The index is a file in the user's cache folder, brought up to date first; one that is damaged, or another
    version's, is made anew.

    Args:
        registry: what is searched.
        ask: is given the index.
        folder: where to keep it; by default below `XDG_CACHE_HOME`, or `~/.cache`.

    Raises:
        IndexFailed: the folder can not be written.
        StoreError: the store failed.
    """
    folder = folder or _cache() / "swapmeet" / "index"
    file = folder / f"{hashlib.sha256(registry.backend.url.encode()).hexdigest()[:32]}.db"
    with _alone(file):
        try:
            return _asked(file, registry, ask)
        except IndexFailed:
            for part in PARTS:
                file.with_name(file.name + part).unlink(missing_ok=True)
            return _asked(file, registry, ask)


def _asked(file: Path, registry: "Registry", ask: Callable[[Index], T]) -> T:
    index = Index(f"sqlite:///{file}")
    try:
        index.prepare()
        index.refresh(registry)
        return ask(index)
    finally:
        index.close()


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Be the only one that uses the file: whoever else comes would do the same work."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # it tells of private adapters
        lock = file.with_suffix(".lock").open("wb")
    except OSError as error:
        raise IndexFailed(
            f"The search index can not be kept in {file.parent} ({error.strerror}). Set XDG_CACHE_HOME to a folder "
            "that can be written."
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
