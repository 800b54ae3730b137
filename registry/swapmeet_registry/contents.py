"""Versions' manifests and files: kept under their SHA-256, and compared with it whenever they are read."""

import hashlib
from collections.abc import Callable, Iterable, Iterator

from swapmeet_registry import canonical
from swapmeet_registry.backend import Source
from swapmeet_registry.errors import Corrupt
from swapmeet_registry.manifest import Manifest, StoredFile
from swapmeet_registry.store_backend import StoreBackend, blob_key
from swapmeet_registry.version import Version

WHOLE = 1 << 20
"""Bytes of a file of which any part costs as much as all of it."""


class Contents:
    """What a backend gives, and only if it is what it must be."""

    def __init__(self, backend: Source) -> None:
        self._backend = backend

    def manifest(self, version: Version) -> Manifest:
        """A version's manifest.

        Raises:
            Corrupt: it is gone or was changed.
            Refused: it is of a schema that is not known here: another release of Swapmeet wrote it.
        """
        stored = self._backend.manifest(version)
        found = canonical.digest(stored) if stored is not None else "nothing"
        if stored is None or found != version.digest:
            raise Corrupt(
                f"The manifest of {version} should have the digest {version.digest}, but "
                f"{self._backend.place(version)} holds {found}. Publish the adapter again, or restore the store."
            )
        return Manifest.decode(stored, f"The manifest of {version}")

    def check(self, version: Version, file: StoredFile, *, read: bool) -> None:
        """Compare a file with its digest: its bytes, or, without `read`, what the place states of them, if it does.

        Raises:
            Corrupt: it is gone or was changed.
        """
        stated = None if read else self._backend.stated(version, file)
        if stated is None:
            for _ in self.blob(version, file):
                pass
        elif stated != (file.size, file.sha256):
            found = f"{stated[0]} bytes with sha256:{stated[1]}"
            raise damaged(version, file, self._backend.place(version), found)

    def blob(self, version: Version, file: StoredFile) -> Iterator[bytes]:
        """A file's bytes in pieces; the end comes only if they are the right ones.

        Raises:
            Corrupt: the blob is gone or was changed; the message names the file and both digests.
        """
        stream = self._backend.blob(version, file)
        yield from compared(stream, version, file, lambda: self._backend.place(version))

    def tail(self, version: Version, file: StoredFile, start: int) -> Iterator[bytes]:
        """A file's bytes from `start` on, in pieces; what is before it is not read, where the place can leave it out.

        Only their number is compared then, for a digest is of the whole: whoever puts the file together compares that.
        A small file, and one of a Hub, is read and compared whole.

        Raises:
            Corrupt: the blob is gone, has another size, or, where it is read whole, was changed.
        """
        if file.size <= WHOLE or not isinstance(self._backend, StoreBackend):
            yield from _behind(start, self.blob(version, file))
            return
        stream, left = self._backend.store.stream(blob_key(file), start), file.size - start
        for chunk in stream or ():
            left -= len(chunk)
            if left < 0:
                break
            yield chunk
        if stream is None or left:
            found = "nothing" if stream is None else f"{file.size - left} bytes{' or more' if left < 0 else ''}"
            raise damaged(version, file, self._backend.place(version), found)


def compared(
    stream: Iterable[bytes] | None, version: Version, file: StoredFile, place: Callable[[], str]
) -> Iterator[bytes]:
    """A file's bytes in pieces, as a place has them; the end comes only if they are the right ones.

    Raises:
        Corrupt: they are gone or were changed; the message names the place, the file and both digests.
    """
    digest, size = hashlib.sha256(), 0
    for chunk in stream or ():
        digest.update(chunk)
        size += len(chunk)
        if size > file.size:  # no need to read on, and no way to fill the disk
            break
        yield chunk
    if stream is None or size > file.size or digest.hexdigest() != file.sha256:
        more = " or more" if size > file.size else ""
        found = f"{size} bytes{more} with sha256:{digest.hexdigest()}" if stream is not None else "nothing"
        raise damaged(version, file, place(), found)


def _behind(start: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """What of some pieces comes from a byte on."""
    for chunk in chunks:
        if start < len(chunk):
            yield chunk[start:]
        start = max(start - len(chunk), 0)


def damaged(version: Version, file: StoredFile, place: str, found: str) -> Corrupt:
    """What is said of a version's file that is not what it must be: where it is, and what was found there."""
    return Corrupt(
        f"{file.path} of {version} should have {file.size} bytes with sha256:{file.sha256}, but {place} holds {found}. "
        "Publish the adapter again, or restore the store."
    )
