"""What the registry asks of a store. `tests/registry/test_store_contract.py` holds every store to it."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from swapmeet_registry.errors import InvalidName, Refused

CHUNK = 1 << 20

_KEY_PART = re.compile(r"[!-.0-\[\]-~][ -.0-\[\]-~]{0,199}")


@dataclass(frozen=True, slots=True)
class Stored:
    """An object's bytes, and the tag that `swap` expects if it is to replace just these."""

    data: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What a listing says of an object: its key, its size in bytes, its etag, and when it was written.

    `written_at` is in seconds since the epoch by the store's clock. The etag is `Stored.etag`'s where listing gives it
    for nothing; else it is None.
    """

    key: str
    size: int
    written_at: float
    etag: str | None = None


class Store(Protocol):
    """Objects by key.

    Keys are relative POSIX paths whose parts are printable ASCII without backslash and do not begin with a dot
    or a space; no key is a folder of another. A store can be pickled, and used by several threads.
    Whatever fails raises a `StoreError`: `StoreDenied` for credentials and permissions, `StoreFull` for space;
    a failed write leaves the old object or none.

    Attributes:
        url: what `open_store` opens again.
    """

    @property
    def url(self) -> str:
        """What `open_store` opens again."""
        ...

    def get(self, key: str) -> Stored | None:
        """A small object whole, or None where there is none. What a finished write wrote is seen at once."""
        ...

    def stream(self, key: str, start: int = 0) -> Iterator[bytes] | None:
        """A large object in pieces of at most 8 MiB, from the byte `start` on, or None where there is none."""
        ...

    def put(self, key: str, source: bytes | Path, sha256: str) -> None:
        """Write an object, durable on return, whether or not it exists.

        For content-addressed keys only, where a second write changes nothing. `sha256` is in hex.

        Raises:
            Refused: the source does not have this SHA-256; nothing was written.
        """
        ...

    def swap(self, key: str, data: bytes, expected: str | None) -> str:
        """Write an object if its etag is `expected`, or, with None, if it does not exist; durable on return.

        Exactly one of several concurrent writers with the same expectation wins. Equal bytes may have equal etags,
        so a document that is swapped must never return to earlier bytes.

        Returns:
            The new etag.

        Raises:
            Conflict: somebody else's write came first. Where an answer was lost and others wrote since, the
                own write may have taken place; a nonce in the data tells.
            StoreError: the store failed. Where that was at the very end, the write may have taken place as well.
        """
        ...

    def size(self, key: str) -> int | None:
        """An object's bytes, or None where there is none."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """The keys that begin with `prefix`, sorted. Unfinished writes are not among them."""
        ...

    def scan(self, prefix: str) -> Iterator[Entry]:
        """As `list`, with sizes and times."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        ...

    def presigned(self, key: str, seconds: int) -> str | None:
        """An address where anybody may read an object for some seconds; None where a store has no such thing.

        Raises:
            ValueError: the seconds are none that may be asked for: 1 to 604,800, a week.
        """
        ...

    def sweep(self, age: float) -> int:
        """Remove what unfinished writes have left and nobody goes on with, if it is older than `age` seconds.

        Returns:
            How many there were.
        """
        ...


def require_key(key: str) -> str:
    """Give a key back.

    Raises:
        InvalidName: it is not one.
    """
    parts = key.split("/")
    if len(key) > 900 or any(not _KEY_PART.fullmatch(part) or part.startswith(".") for part in parts):
        raise InvalidName(f"{key[:200]!r} is not a key of a store.")
    return key


def verified(source: bytes | Path, sha256: str) -> Iterator[bytes]:
    """The source's bytes in pieces; the end comes only if they have this SHA-256.

    Raises:
        Refused: they have another.
    """
    found = hashlib.sha256()
    for chunk in pieces(source):
        found.update(chunk)
        yield chunk
    if found.hexdigest() != sha256:
        raise changed(source.name if isinstance(source, Path) else "The data")


def changed(name: str) -> Refused:
    """What is said of a source that has not its SHA-256."""
    return Refused(f"{name} changed while it was published. Push again when nothing writes to it.")


def pieces(source: bytes | Path, start: int = 0) -> Iterable[bytes]:
    """The source's bytes from `start` on, in pieces of at most 1 MiB."""
    if isinstance(source, bytes):
        yield from (source[at : at + CHUNK] for at in range(start, len(source), CHUNK))
    else:
        with source.open("rb") as stream:
            stream.seek(start)
            yield from iter(lambda: stream.read(CHUNK), b"")
