"""Write a version's files into a folder that appears whole or not at all."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

from swapmeet_registry.errors import Refused
from swapmeet_registry.manifest import Manifest, StoredFile
from swapmeet_registry.provenance import Provenance
from swapmeet_registry.stores.files import make_folder, os_errors, sync_folder

SMALL = 1 << 20
"""Bytes of a file that is fetched beside others."""
AT_ONCE = 8


def unpack(
    manifest: Manifest,
    folder: Path,
    read: Callable[[StoredFile], Iterable[bytes]],
    make_room: Callable[[int], None] = lambda _: None,
) -> None:
    """Fill a hidden folder beside `folder`, make it durable, and rename it.

    Args:
        manifest: what to write, with its provenance as `swapmeet.json`.
        folder: must not exist, be empty, or hold the same already.
        read: gives a file's verified bytes in pieces.
        make_room: is told how many bytes will be written, before any is.

    Raises:
        Refused: the folder holds something else.
        StoreError: the disk is full, or the folder may not be written.
    """
    folder = folder.resolve()
    with os_errors(f"write {folder}"):
        if _occupied(folder):
            _require_same(manifest, folder)
            return
        make_folder(folder.parent)
        make_room(manifest.size + len(manifest.provenance().encode()))
        partial = folder.with_name(f".{folder.name}.{uuid4().hex}.partial")
        partial.mkdir()
        try:
            _fill(partial, manifest, read)
            _write(partial / Provenance.FILE, [manifest.provenance().encode()])
            sync_folder(partial)
            _rename(partial, folder, manifest)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        sync_folder(folder.parent)


def _fill(partial: Path, manifest: Manifest, read: Callable[[StoredFile], Iterable[bytes]]) -> None:
    """Write the files: the small ones at once, since each of them costs a way there and back and hardly more."""
    with ThreadPoolExecutor(AT_ONCE, "pull") as pool:
        small = [file for file in manifest.files if file.size <= SMALL]
        writes = [pool.submit(_write, partial / file.path, read(file)) for file in small]
        for file in manifest.files:
            if file.size > SMALL:
                _write(partial / file.path, read(file))
        for write in writes:
            write.result()


def _occupied(folder: Path) -> bool:
    return folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))


def _require_same(manifest: Manifest, folder: Path) -> None:
    wanted = {file.path: file.sha256 for file in manifest.files}
    wanted[Provenance.FILE] = hashlib.sha256(manifest.provenance().encode()).hexdigest()
    if not folder.is_dir() or {path.name: _sha256(path) for path in folder.iterdir()} != wanted:
        raise Refused(f"{folder} holds something other than {manifest.adapter}@{manifest.digest}. Name a new folder.")


def _sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write(path: Path, chunks: Iterable[bytes]) -> None:
    with path.open("xb") as stream:
        stream.writelines(chunks)
        stream.flush()
        os.fsync(stream.fileno())


def _rename(partial: Path, folder: Path, manifest: Manifest) -> None:
    try:
        partial.rename(folder)
    except OSError:
        if not _occupied(folder):
            raise
        _require_same(manifest, folder)  # another pull of the same version was quicker
