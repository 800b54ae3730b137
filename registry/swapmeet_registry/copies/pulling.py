"""Write a version's files into a folder that appears whole or not at all."""

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from swapmeet_registry.errors import Corrupt, Refused
from swapmeet_registry.manifest import Manifest, StoredFile
from swapmeet_registry.origin.provenance import Provenance
from swapmeet_registry.stores.files import make_folder, os_errors, sync_folder

SMALL = 1 << 20
"""Bytes of a file that is fetched beside others."""
AT_ONCE = 8
SYNCED = 8 << 20
"""Bytes after which the disk is told to begin with what was written."""


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
        if _is_there(manifest, folder):
            return
        _require_replaceable(folder)
        make_folder(folder.parent)
        make_room(manifest.size + len(manifest.provenance().encode()))
        partial = folder.with_name(f".{folder.name}.{uuid4().hex}.partial")
        partial.mkdir()
        try:
            _fill(partial, manifest, read)
            sync_folder(partial)
            _rename(partial, folder, manifest)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        sync_folder(folder.parent)


def _fill(partial: Path, manifest: Manifest, read: Callable[[StoredFile], Iterable[bytes]]) -> None:
    """Write all files: the small ones at once, since each of them costs a way there and back and hardly more."""
    with ThreadPoolExecutor(AT_ONCE, "pull") as pool:
        small = [file for file in manifest.files if file.size <= SMALL]
        writes = [pool.submit(_write, partial / file.path, read(file)) for file in small]
        writes.append(pool.submit(_write, partial / Provenance.FILE, [manifest.provenance().encode()]))
        for file in manifest.files:
            if file.size > SMALL:
                _write(partial / file.path, read(file))
        for write in writes:
            write.result()


def _occupied(folder: Path) -> bool:
    return folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))


def _require_replaceable(folder: Path) -> None:
    """What is pulled takes an empty folder's place: a disk's own can not be moved away, and who works in it is lost."""
    if folder.is_dir() and (folder.is_mount() or folder.samefile(os.curdir)):
        raise Refused(f"{folder} is a disk's own folder, or the one that you are in. Name a new folder in it.")


def _is_there(manifest: Manifest, folder: Path) -> bool:
    """Whether a folder holds the version already; one that is empty, or is cleared away meanwhile, does not.

    Raises:
        Refused: it holds something else.
    """
    try:
        if _occupied(folder):
            _require_same(manifest, folder)
            return True
    except (FileNotFoundError, Refused):
        if folder.exists():
            raise
    return False


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
    """Write a file, durably. The disk begins with a large one while the rest of it comes in."""
    with path.open("xb") as stream, ThreadPoolExecutor(1, "sync") as pool:
        syncing, since = None, 0
        for chunk in chunks:
            stream.write(chunk)
            since += len(chunk)
            if since >= SYNCED and (syncing is None or syncing.done()):
                syncing, since = pool.submit(os.fdatasync, stream.fileno()), 0
        stream.flush()
        if syncing is not None:
            syncing.result()
        os.fsync(stream.fileno())


def _rename(partial: Path, folder: Path, manifest: Manifest) -> None:
    while True:
        try:
            partial.rename(folder)
            return
        except OSError as error:
            if _is_there(manifest, folder):  # another pull of the same version was quicker
                return
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else it was, and is cleared away again
                raise


def receive(manifest: Manifest, folder: Path, fetch: Callable[[StoredFile, int], Iterable[bytes]]) -> None:
    """As `unpack`, for bytes that come from afar: goes on with what an interrupted call left, and checks all of it.

    Args:
        manifest: what to write.
        folder: must not exist, be empty, or hold the same already; then nothing is fetched.
        fetch: gives a file's bytes from some byte on, in pieces.

    Raises:
        Corrupt: a file came whole, and with other bytes than the manifest says.
        Refused: the folder holds something else, or another process fills it.
        StoreError: the disk is full, or the folder may not be written.
    """
    folder = folder.resolve()
    with os_errors(f"write {folder}"):
        if _is_there(manifest, folder):
            return
        _require_replaceable(folder)
        make_folder(folder.parent)
        partial = folder.with_name(f".{folder.name}.{manifest.digest.removeprefix('sha256:')[:16]}.partial")
        with _alone(partial.with_suffix(".lock"), folder):
            partial.mkdir(exist_ok=True)
            for file in manifest.files:
                _receive(partial / file.path, file, fetch)
            (partial / Provenance.FILE).unlink(missing_ok=True)
            _write(partial / Provenance.FILE, [manifest.provenance().encode()])
            sync_folder(partial)
            _rename(partial, folder, manifest)
            shutil.rmtree(partial, ignore_errors=True)  # another pull of the same version was quicker
        sync_folder(folder.parent)


@contextmanager
def _alone(path: Path, folder: Path) -> Iterator[None]:
    """One process at a time, by a lock that goes with its holder."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"Another process pulls into {folder}. Wait for it, or name another folder.") from None
        yield
        path.unlink(missing_ok=True)


def _receive(path: Path, file: StoredFile, fetch: Callable[[StoredFile, int], Iterable[bytes]]) -> None:
    with path.open("ab") as stream:
        if stream.tell() > file.size:
            stream.truncate(0)
            stream.seek(0)
        if stream.tell() < file.size:
            stream.writelines(fetch(file, stream.tell()))
        stream.flush()
        os.fsync(stream.fileno())
    if (found := _sha256(path)) != file.sha256:
        size = path.stat().st_size
        path.unlink()
        raise Corrupt(
            f"{file.path} came as {size} bytes with sha256:{found}, and should have {file.size} "
            f"with sha256:{file.sha256}. Pull again; if it is the same, the store is damaged."
        )
