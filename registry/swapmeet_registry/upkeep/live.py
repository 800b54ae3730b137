"""Which objects of a store its versions need."""

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import islice
from typing import TypeVar

from swapmeet_registry.contents import Contents
from swapmeet_registry.errors import Corrupt, InvalidName
from swapmeet_registry.head import Head, Record
from swapmeet_registry.heads import Heads
from swapmeet_registry.names import AdapterName
from swapmeet_registry.store_backend import HEADS, StoreBackend, name_of
from swapmeet_registry.stores import Entry, Store
from swapmeet_registry.version import Version

FOLDERS = ("blobs/", "manifests/", "reports/", "signatures/")
"""What is collected: objects under a SHA-256, of their own bytes or of the manifest that they belong to."""
HEADS_AT_ONCE, AT_ONCE = 16, 256
"""Heads, which may be long, and manifests that are held in memory together."""
YOUNG = 5.0
"""Seconds since a head was written: more than the coarsest clock of a file system takes for a tick."""
READERS = 16
"""Threads that ask a store over a network: each answer takes its time."""
T = TypeVar("T")
U = TypeVar("U")


class Live:
    """The objects that versions need, kept up by reading the heads that changed since the last look. For one thread.

    A version counts for as long as it is not deleted, and for `grace` seconds after that, so that those who read it
    just then come to an end. What was needed once stays needed, in this object's life. It is kept in a temporary
    database on disk, so that memory does not grow with the registry.
    """

    def __init__(self, store: Store, grace: float) -> None:
        self._store, self._grace = store, grace
        backend = StoreBackend(store)
        self._heads, self._contents = Heads(backend), Contents(backend)
        self._known = _Known()

    def close(self) -> None:
        """Let go of what it knows."""
        self._known.close()

    def look(self, now: float) -> None:
        """Read the heads that changed, and the manifests of their new versions.

        Raises:
            Corrupt: a head or a manifest is damaged or gone; what it needs can not be known.
        """
        changed = (entry for entry in self._store.scan(HEADS) if self._known.changed(entry))
        for entries in _portions(changed, HEADS_AT_ONCE):
            heads = side_by_side(self._store, self._head, [entry.key for entry in entries])
            versions = (
                Version.of(head, record)
                for head in heads
                for record in self._kept(head, now)
                if not self._known.read(_bytes(record.digest))
            )
            for some in _portions(versions, AT_ONCE):
                for version, manifest in zip(
                    some, side_by_side(self._store, self._contents.manifest, some), strict=True
                ):
                    files = (bytes.fromhex(file.sha256) for file in manifest.files)
                    self._known.add(_bytes(version.digest), files)
            self._known.note(entries)

    def needs(self, key: str) -> bool:
        """Whether a version needs an object."""
        return self._known.needs(_digest(key))

    def _head(self, key: str) -> Head:
        try:
            name = AdapterName.parse(name_of(key))
        except InvalidName as error:
            raise Corrupt(f"{key} in {self._store.url} is no head. Move it away.") from error
        return self._heads.get(name)

    def _kept(self, head: Head, now: float) -> Iterator[Record]:
        for record in head.versions:
            gone = record.withdrawn_at if record.deleted is not None else None
            if gone is None or now - datetime.fromisoformat(gone).timestamp() <= self._grace:
                yield record


class _Known:
    """Digests that are needed, versions and heads that were read, these as they were listed then: on disk.

    That a version was read says its own table only: a file of an adapter may have the very bytes, and so the digest,
    of another version's manifest.
    """

    def __init__(self) -> None:
        self._tables = sqlite3.connect("", isolation_level=None)  # a file that the system removes by itself
        self._tables.executescript(
            "CREATE TABLE needed (sha256 BLOB PRIMARY KEY) WITHOUT ROWID;"
            "CREATE TABLE version (sha256 BLOB PRIMARY KEY) WITHOUT ROWID;"
            "CREATE TABLE head (key TEXT PRIMARY KEY, size INTEGER, written_at REAL, etag TEXT) WITHOUT ROWID;"
            "PRAGMA cache_size = -8000;"
        )
        self._tables.execute("BEGIN")

    def changed(self, entry: Entry) -> bool:
        row = self._tables.execute("SELECT size, written_at, etag FROM head WHERE key = ?", [entry.key]).fetchone()
        return bool(row != (entry.size, entry.written_at, entry.etag))

    def note(self, entries: Iterable[Entry]) -> None:
        """Without an etag, one that is young is read again: another of its size may come within a tick of the clock."""
        settled = (each for each in entries if each.etag or abs(time.time() - each.written_at) >= YOUNG)
        rows = ((each.key, each.size, each.written_at, each.etag) for each in settled)
        self._tables.executemany("INSERT OR REPLACE INTO head VALUES (?, ?, ?, ?)", rows)

    def needs(self, sha256: bytes) -> bool:
        return self._tables.execute("SELECT 1 FROM needed WHERE sha256 = ?", [sha256]).fetchone() is not None

    def read(self, version: bytes) -> bool:
        return self._tables.execute("SELECT 1 FROM version WHERE sha256 = ?", [version]).fetchone() is not None

    def add(self, version: bytes, files: Iterable[bytes]) -> None:
        needed = ((each,) for each in (version, *files))
        self._tables.executemany("INSERT OR IGNORE INTO needed VALUES (?)", needed)
        self._tables.execute("INSERT OR IGNORE INTO version VALUES (?)", [version])

    def close(self) -> None:
        self._tables.close()


def side_by_side(store: Store, work: Callable[[T], U], things: Sequence[T]) -> list[U]:
    """What `work` gives of each; over a network many are under way at once, and of a disk one after the other."""
    if len(things) < 2 or not store.url.startswith("s3:"):
        return list(map(work, things))
    with ThreadPoolExecutor(READERS, "upkeep") as pool:
        return list(pool.map(work, things))


def _portions(things: Iterable[T], most: int) -> Iterator[list[T]]:
    source = iter(things)
    while some := list(islice(source, most)):
        yield some


def _bytes(digest: str) -> bytes:
    return bytes.fromhex(digest.removeprefix("sha256:"))


def _digest(key: str) -> bytes:
    """The digest in a key such as `blobs/sha256/HEX` or `reports/sha256/HEX.json`; none where it has none."""
    parts = key.split("/")
    try:
        return bytes.fromhex(parts[2].partition(".")[0])
    except (IndexError, ValueError):
        return b""
