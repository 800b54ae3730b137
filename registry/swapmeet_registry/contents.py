"""Blobs and manifests in a store: kept under their SHA-256, and compared with it whenever they are read."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from swapmeet_registry import canonical
from swapmeet_registry.errors import Corrupt
from swapmeet_registry.fault import reached
from swapmeet_registry.manifest import Manifest, StoredFile
from swapmeet_registry.stores import Store


class Contents:
    """`blobs/sha256/HEX` and `manifests/sha256/HEX`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def write_blobs(self, folder: Path, files: tuple[StoredFile, ...]) -> None:
        """Write the files of a folder, even those that are there: a damaged blob is mended, none taken on trust.

        Raises:
            Refused: a file is not what it was when its digest was taken.
        """
        for file in files:
            self._store.put(blob_key(file), folder / file.path, file.sha256)
            reached("push.blob")
        reached("push.blobs")

    def write_manifest(self, manifest: Manifest) -> None:
        """Write a manifest."""
        digest = manifest.digest
        self._store.put(manifest_key(digest), manifest.encode(), digest.removeprefix("sha256:"))
        reached("push.manifest")

    def manifest(self, digest: str, what: str) -> Manifest:
        """The manifest with a digest; `what` names its version in errors.

        Raises:
            Corrupt: it is gone or was changed.
        """
        stored = self._store.get(manifest_key(digest))
        found = canonical.digest(stored.data) if stored else "nothing"
        if stored is None or found != digest:
            raise Corrupt(
                f"The manifest of {what} should have the digest {digest}, but {self._store.url} holds {found}. "
                "Publish the adapter again, or restore the store."
            )
        return Manifest.decode(stored.data, f"The manifest of {what}")

    def blob(self, file: StoredFile, what: str) -> Iterator[bytes]:
        """A file's bytes in pieces; the end comes only if they are the right ones.

        Raises:
            Corrupt: the blob is gone or was changed; the message names the file and both digests.
        """
        stream = self._store.stream(blob_key(file))
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
            raise Corrupt(
                f"{file.path} of {what} should have {file.size} bytes with sha256:{file.sha256}, but {self._store.url} "
                f"holds {found}. Publish the adapter again, or restore the store."
            )


def blob_key(file: StoredFile) -> str:
    """Where a file's bytes are."""
    return f"blobs/sha256/{file.sha256}"


def manifest_key(digest: str) -> str:
    """Where the manifest with a digest is."""
    return f"manifests/{digest.replace(':', '/')}"


def keys_of(manifest: Manifest) -> tuple[str, ...]:
    """The keys of all that a version consists of."""
    return (*map(blob_key, manifest.files), manifest_key(manifest.digest))
