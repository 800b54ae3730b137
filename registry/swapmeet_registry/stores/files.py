"""Files and folders that are whole and durable, or not there; and the seam to the operating system's errors."""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from swapmeet_registry.errors import RegistryError, StoreDenied, StoreError, StoreFull
from swapmeet_registry.fault import reached

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def os_errors(action: str) -> Iterator[None]:
    """Turn the operating system's errors into the registry's; `action` completes "Can not …"."""
    try:
        yield
    except RegistryError:
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in _FULL:
            raise StoreFull(f"Can not {action}: {reason}. Free some space and try again.") from error
        if error.errno in _DENIED:
            raise StoreDenied(f"Can not {action}: {reason}. Check its owner and permissions.") from error
        raise StoreError(f"Can not {action}: {reason}.") from error


def write_file(path: Path, partial: Path, chunks: Iterable[bytes]) -> None:
    """Write a file by way of `partial`, in the same folder: whole and durable, or nothing."""
    try:
        with partial.open("wb") as stream:
            stream.writelines(chunks)
            stream.flush()
            reached("local.written")
            os.fsync(stream.fileno())
        reached("local.synced")
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    reached("local.renamed")
    sync_folder(path.parent)
    reached("local.folder_synced")


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, durably."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable: without it a rename may be undone by a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
