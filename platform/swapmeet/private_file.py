"""Files for keys: their owner's only."""

import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4


def write_private(path: Path, line: str, *, replace: bool) -> None:
    """Keep a line in a file that only its owner may read, whole and durable or not at all.

    Args:
        path: the file's; its folder is made if missing.
        line: what it is to hold.
        replace: whether it takes the place of one that is there, which otherwise stays: of several that write at
            once, the first then counts for all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}-{uuid4().hex[:8]}.partial")
    with open(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        with suppress(FileExistsError):
            (os.replace if replace else os.link)(partial, path)  # unlike a rename, a link never replaces another's
    finally:
        partial.unlink(missing_ok=True)
