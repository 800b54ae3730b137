"""Which blobs and manifests a registry needs, in a temporary database on disk: any number, in little memory."""

import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from swapmeet_registry.manifest import Manifest, StoredFile
from swapmeet_registry.version import Version

_TABLES = """
CREATE TABLE version (id INTEGER PRIMARY KEY, name TEXT, number INTEGER, digest TEXT, created_at TEXT);
CREATE TABLE file (sha256 BLOB PRIMARY KEY, size INTEGER, path TEXT, version INTEGER, seen INTEGER) WITHOUT ROWID;
CREATE TABLE also (sha256 BLOB, version INTEGER, PRIMARY KEY (sha256, version)) WITHOUT ROWID;
CREATE TABLE manifest (sha256 BLOB PRIMARY KEY) WITHOUT ROWID;
PRAGMA cache_size = -8000;
"""


@dataclass(frozen=True, slots=True)
class NeededFile:
    """A file, and the first version that needs it."""

    version: Version
    file: StoredFile


class Needed(AbstractContextManager["Needed"]):
    """For one thread. The database goes with the object."""

    def __init__(self) -> None:
        self._tables = sqlite3.connect("", isolation_level=None)  # a file that the system removes by itself
        self._tables.executescript(_TABLES)
        self._tables.execute("BEGIN")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._tables.close()

    def add(self, version: Version, manifest: Manifest | None) -> None:
        """A version needs its manifest, and the files that this names, if it could be read."""
        self._tables.execute("INSERT OR IGNORE INTO manifest VALUES (?)", [_bytes(version.digest)])
        if manifest is None:
            return
        row = self._tables.execute(
            "INSERT INTO version (name, number, digest, created_at) VALUES (?, ?, ?, ?)",
            (version.name, version.version, version.digest, version.created_at),
        ).lastrowid
        for file in manifest.files:
            sha256 = bytes.fromhex(file.sha256)
            values = (sha256, file.size, file.path, row)
            if not self._tables.execute("INSERT OR IGNORE INTO file VALUES (?, ?, ?, ?, 0)", values).rowcount:
                self._tables.execute("INSERT OR IGNORE INTO also VALUES (?, ?)", (sha256, row))

    def has_manifest(self, sha256: bytes) -> bool:
        """Whether a version has this manifest."""
        return bool(self._tables.execute("SELECT 1 FROM manifest WHERE sha256 = ?", [sha256]).fetchone())

    def see(self, sha256: bytes) -> NeededFile | None:
        """Note that a file is there; None where nobody needs it."""
        found = next(self._files("WHERE sha256 = ?", sha256), None)
        if found is not None:
            self._tables.execute("UPDATE file SET seen = 1 WHERE sha256 = ?", [sha256])
        return found

    def others(self, needed: NeededFile) -> Iterator[NeededFile]:
        """The same file, for each further version that needs it."""
        query = (
            "SELECT name, number, digest, created_at FROM also JOIN version ON version = id "
            "WHERE sha256 = ? AND version != (SELECT version FROM file WHERE sha256 = also.sha256)"
        )
        for row in self._tables.execute(query, [bytes.fromhex(needed.file.sha256)]):
            yield NeededFile(Version(*row), needed.file)

    def unseen(self) -> Iterator[NeededFile]:
        """The files that were not seen."""
        return self._files("WHERE seen = 0")

    def totals(self) -> tuple[int, int]:
        """How many files there must be, and their bytes."""
        count, size = self._tables.execute("SELECT count(*), coalesce(sum(size), 0) FROM file").fetchone()
        return int(count), int(size)

    def _files(self, where: str, *values: object) -> Iterator[NeededFile]:
        query = "SELECT name, number, digest, created_at, path, size, sha256 FROM file JOIN version ON version = id "
        for name, number, digest, created_at, path, size, sha256 in self._tables.execute(query + where, values):
            file = StoredFile(path=path, size=size, sha256=sha256.hex())
            yield NeededFile(Version(name, number, digest, created_at), file)

    def __enter__(self) -> Self:
        return self


def _bytes(digest: str) -> bytes:
    return bytes.fromhex(digest.removeprefix("sha256:"))
