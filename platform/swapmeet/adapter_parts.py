"""Files on their way to the registry, in parts that lie in the storage: any server takes the next one.

A part is kept under its publish, its file's SHA-256, and where in the file it begins. So of parts that are sent for one
place with different bytes, also at once, one is kept whole: the one whose write ended last. Which it is the sender need
not know: a file is joined only if it has the SHA-256 that was announced, and else its parts are asked for again.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from swapmeet.database.tables import PublishRow
from swapmeet.errors import NotFound, RequestRefused
from swapmeet.files.blobs import measure_file
from swapmeet.files.rules import refuse, shortened
from swapmeet_registry import StoredFile
from swapmeet_registry.errors import Corrupt
from swapmeet_registry.stores import Store
from swapmeet_registry.stores.files import os_errors

PART = 16 << 20
"""Bytes of each part of a file but its last."""
FOLDER = "publishing/"


class Parts:
    """The parts of all publishes. For any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def keep(self, row: PublishRow, path: str, offset: int, source: Path, sha256: str | None) -> None:
        """Keep a part of a file; see `Publishes.add`."""
        file = next((file for file in files_of(row) if file.path == path), None)
        if file is None:
            raise NotFound(f"No file {shortened(path)} was announced for this upload. Begin another that names it.")
        sums = measure_file(source)
        size = min(PART, file.size - offset)
        if offset % PART or size <= 0 or sums.bytes != size:
            raise RequestRefused(
                f"{path} has {file.size} bytes in parts of {PART}; {sums.bytes} bytes at {offset} are none of them. "
                "Send the parts that are missing.",
                "offset",
            )
        if sha256 is not None and sums.sha256 != sha256:
            raise RequestRefused(f"The part of {path} at {offset} came damaged: it has another SHA-256. Send it again.")
        self._store.put(f"{_folder(row.id)}{file.sha256}/{offset:012d}", source, sums.sha256)

    def missing(self, row: PublishRow) -> dict[str, list[int]]:
        """By file: where the parts begin that have not come yet."""
        there = {(sha256, offset) for _, sha256, offset in self.there(row)}
        digests = {file.path: file.sha256 for file in files_of(row)}
        return {path: [at for at in parts if (digests[path], at) not in there] for path, parts in wanted(row).items()}

    def join(self, row: PublishRow, folder: Path) -> None:
        """Make the files of their parts.

        Raises:
            RequestRefused: some are missing, or a file has not the SHA-256 that was announced; its parts are dropped.
        """
        if lacking := [path for path, parts in self.missing(row).items() if parts]:
            raise RequestRefused(
                f"Parts of {', '.join(lacking)} are missing. Send them, and complete it again.", "files"
            )
        parts = sorted((sha256, offset, key) for key, sha256, offset in self.there(row))
        mistakes = []
        for file in files_of(row):
            digest = hashlib.sha256()
            keys = [key for sha256, _, key in parts if sha256 == file.sha256]
            with os_errors(f"write {file.path}"), (folder / file.path).open("wb") as stream:
                for chunk in (chunk for key in keys for chunk in self._stored(key)):
                    digest.update(chunk)
                    stream.write(chunk)
            if digest.hexdigest() != file.sha256:
                mistakes.append(("files", f"{file.path} came with another SHA-256 than was announced. Send it again."))
                for key in keys:
                    self._store.delete(key)
        refuse(mistakes)

    def _stored(self, key: str) -> Iterator[bytes]:
        chunks = self._store.stream(key)
        if chunks is None:  # another completed or cancelled it just now
            raise Corrupt("A part of the upload is gone. Ask for the upload to see what became of it.")
        return chunks

    def there(self, row: PublishRow) -> Iterator[tuple[str, str, int]]:
        """The parts that came: key, the file's SHA-256, and where in it they begin."""
        for key in self._store.list(_folder(row.id)):
            _, _, sha256, part = key.split("/")
            yield key, sha256, int(part)

    def identities(self) -> set[str]:
        """The publishes that have parts here."""
        return {key.split("/")[1] for key in self._store.list(FOLDER)}

    def clear(self, identity: str) -> None:
        """Delete the parts of a publish."""
        for key in list(self._store.list(_folder(identity))):
            self._store.delete(key)


def wanted(row: PublishRow) -> dict[str, list[int]]:
    """By file: where its parts begin."""
    return {file.path: list(range(0, file.size, PART)) for file in files_of(row)}


def files_of(row: PublishRow) -> list[StoredFile]:
    """The files that were announced."""
    return [StoredFile.model_validate(file) for file in row.request["files"]]


def _folder(identity: str) -> str:
    return f"{FOLDER}{identity}/"
