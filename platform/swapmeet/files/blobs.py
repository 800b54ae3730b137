"""The bytes of files and parts in the storage, always compared with the digest that their row has."""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from uuid import uuid4

from swapmeet_registry.errors import Corrupt
from swapmeet_registry.stores.files import make_folder, os_errors
from swapmeet_registry.stores.protocol import Store, pieces

FILES, PARTS = "files/", "parts/"


@dataclass(frozen=True, slots=True)
class Sums:
    """What is known of some bytes once all of them have been read: digests in hex."""

    bytes: int
    sha256: str
    md5: str


def measure(chunks: Iterable[bytes]) -> Sums:
    """Read everything, and keep nothing of it."""
    size, sha256, md5 = 0, hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    for chunk in chunks:
        size += len(chunk)
        sha256.update(chunk)
        md5.update(chunk)
    return Sums(size, sha256.hexdigest(), md5.hexdigest())


def measure_file(path: Path) -> Sums:
    """Of a file on this machine."""
    with os_errors(f"read {path}"):
        return measure(pieces(path))


def read_blob(store: Store, key: str, sha256: str) -> Iterator[bytes]:
    """An object's bytes in pieces; the last comes only if all of them have this digest.

    Raises:
        Corrupt: they have another, or there is no such object.
    """
    chunks = store.stream(key)
    if chunks is None:
        raise Corrupt(f"The storage has lost {key}. Upload the file again.")
    return _checked(chunks, key, sha256)


def _checked(chunks: Iterator[bytes], key: str, sha256: str) -> Iterator[bytes]:
    found, held = hashlib.sha256(), b""
    for chunk in chunks:
        found.update(chunk)
        if held:
            yield held
        held = chunk
    if found.hexdigest() != sha256:
        raise Corrupt(f"The storage has other bytes under {key} than were uploaded. Upload the file again.")
    yield held


@contextmanager
def spooled(folder: Path) -> Iterator[IO[bytes]]:
    """A file of this process's own in a folder, open to write within the block, and gone after it."""
    with os_errors(f"write in {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        stream = tempfile.NamedTemporaryFile(dir=folder)  # noqa: SIM115 - closed below, whatever it holds
    try:
        yield stream
    finally:
        with suppress(OSError):  # a full disk was told when its bytes were written
            stream.close()


def write_beside(target: Path, chunks: Iterable[bytes]) -> None:
    """Write a file that appears whole or not at all; it need not outlive a power cut."""
    with os_errors(f"write {target}"):
        make_folder(target.parent)
        partial = target.with_name(f".{uuid4().hex}.partial")
        try:
            with partial.open("wb") as stream:
                stream.writelines(chunks)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
