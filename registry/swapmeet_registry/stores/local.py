"""A store in a local folder.

Conditional writes hold an `flock`, so the folder must be on one machine's disk, or on a network file system
that passes locks on.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from swapmeet_registry.errors import Conflict, StoreError
from swapmeet_registry.fault import reached
from swapmeet_registry.stores.files import make_folder, os_errors, sync_folder, write_file
from swapmeet_registry.stores.protocol import Entry, Stored, pieces, require_key, verified

MARK = ".locks"
"""The folder that the first write makes. Where it is missing, nobody wrote yet, or a disk is not mounted."""
_used: set[Path] = set()
"""Roots that this process knows to be in use."""
_unsynced: set[Path] = set()
"""Folders with entries that this process could not make durable yet."""


class LocalStore:
    """Keys are paths below a folder, which is made by the first write; hidden files are its own affair.

    A folder that was in use and has lost its mark is an error, not an empty store: its disk is not mounted.

    Args:
        root: the folder.
        used: whether it was written to before, by whomever; else that is known from the first hit or write on.
    """

    def __init__(self, root: Path, *, used: bool = False) -> None:
        self.root = root.absolute()
        if used:
            _used.add(self.root)

    @property
    def url(self) -> str:
        """`file:///FOLDER`."""
        return self.root.as_uri()

    @property
    def marked(self) -> bool:
        """Whether it was written to."""
        return (self.root / MARK).is_dir()

    def begin(self) -> None:
        """Make the folder and its mark, unless they are there.

        Raises:
            StoreError: it was in use and has vanished, or can not be made.
        """
        with os_errors(f"write into {self.root}"):
            if not self.marked:
                self._require_there()
                make_folder(self.root / MARK)
        _used.add(self.root)

    def forget(self) -> None:
        """Let the folder be gone: it is about to be removed."""
        _used.discard(self.root)

    def get(self, key: str) -> Stored | None:
        """See `Store`."""
        with os_errors(f"read {self._path(key)}"):
            return self._read(key)

    def stream(self, key: str, start: int = 0) -> Iterator[bytes] | None:
        """See `Store`."""
        path = self._path(key)
        return self._pieces(path, start) if self.size(key) is not None else None

    def put(self, key: str, source: bytes | Path, sha256: str) -> None:
        """See `Store`."""
        path = self._path(key)
        self.begin()
        with os_errors(f"write {path}"):
            make_folder(path.parent)
            write_file(path, path.with_name(f".{uuid4().hex}.partial"), verified(source, sha256))

    def swap(self, key: str, data: bytes, expected: str | None) -> str:
        """See `Store`."""
        path = self._path(key)
        self.begin()
        with os_errors(f"write {path}"):
            make_folder(path.parent)
            with self._locked(key):
                reached("local.locked")
                stored = self._read(key)
                if (stored.etag if stored else None) != expected:
                    raise Conflict(f"Somebody else wrote {key} in {self.url} first. Read it again.")
                # The lock allows one name for all: what a killed writer left is overwritten by the next.
                try:
                    write_file(path, path.with_name(f".{path.name}.partial"), [data])
                except OSError as error:
                    if path.is_file() and path.read_bytes() == data:  # seen by all, and so not to be taken back
                        raise self._unsure(key, error) from error
                    raise
        return _etag(data)

    def size(self, key: str) -> int | None:
        """See `Store`."""
        path = self._path(key)
        with os_errors(f"read {path}"):
            if path.is_file():
                return path.stat().st_size
            self._require_there()
            return None

    def list(self, prefix: str) -> Iterator[str]:
        """See `Store`."""
        with os_errors(f"read {self.root}"):
            found = sorted(key for key in self._keys(self.root / os.path.dirname(prefix)) if key.startswith(prefix))
            if not found:
                self._require_there()
        yield from found

    def scan(self, prefix: str) -> Iterator[Entry]:
        """See `Store`."""
        for key in self.list(prefix):
            with os_errors(f"read {self._path(key)}"), suppress(FileNotFoundError):  # deleted since
                status = self._path(key).stat()
                yield Entry(key, status.st_size, status.st_mtime)

    def delete(self, key: str) -> None:
        """See `Store`."""
        path = self._path(key)
        with os_errors(f"delete {path}"):
            if path.is_file():
                path.unlink(missing_ok=True)
                sync_folder(path.parent)
            else:
                self._require_there()

    def presigned(self, key: str, seconds: int) -> str | None:  # noqa: ARG002 - a folder has no addresses
        """See `Store`."""
        require_key(key)
        return None

    def partials(self, age: float) -> Iterator[Path]:
        """What writers that were killed left half written at least `age` seconds ago."""
        for path, folders, files in os.walk(self.root, onerror=_raise_unless_missing):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                partial = Path(path, name)
                with suppress(FileNotFoundError):
                    if name.startswith(".") and name.endswith(".partial") and _age(partial) >= age:
                        yield partial

    def sweep(self, age: float) -> int:
        """See `Store`: what killed writers left beside their objects."""
        count = 0
        with os_errors(f"tidy {self.root}"):
            for partial in self.partials(age):
                partial.unlink(missing_ok=True)
                count += 1
        return count

    def _path(self, key: str) -> Path:
        return self.root / require_key(key)

    def _unsure(self, key: str, error: OSError) -> StoreError:
        """A write was made, but not durably. Like one whose answer was lost: who has a name for it finds it by that."""
        _unsynced.add(self._path(key).parent)
        return StoreError(
            f"{key} in {self.url} was written, but is not sure to outlive a power cut: {error.strerror or error}. "
            "Check the disk, and look whether it is there before you do the same again."
        )

    def _read(self, key: str) -> Stored | None:
        if (folder := self._path(key).parent) in _unsynced:  # nobody is to build on what may be undone
            sync_folder(folder)
            _unsynced.discard(folder)
        try:
            data = self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            self._require_there()
            return None
        if self.root not in _used and self.marked:
            _used.add(self.root)
        return Stored(data, _etag(data))

    def _require_there(self) -> None:
        """Tell an empty store from one that vanished; asked where nothing is found, and before writes."""
        if self.root in _used and not self.marked:
            raise StoreError(f"{self.root} was in use, and is empty or gone now. Is its disk mounted? Mount it again.")

    def _pieces(self, path: Path, start: int) -> Iterator[bytes]:
        with os_errors(f"read {path}"):
            yield from pieces(path, start)

    def _keys(self, folder: Path) -> Iterator[str]:
        for path, folders, files in os.walk(folder, onerror=_raise_unless_missing):
            folders[:] = [name for name in folders if not name.startswith(".")]
            place = Path(path).relative_to(self.root)
            yield from ((place / name).as_posix() for name in files if not name.startswith("."))

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        with (self.root / MARK / hashlib.sha256(key.encode()).hexdigest()[:2]).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
