"""A file's bytes over HTTP, whole or a range; what is sent to the end is compared with its digest before the end.

Stores are read from the start. The last piece is held back until the digest is known to be right, so of a damaged file
no client ever has all bytes; of one in a single piece it gets an error and nothing else. A range that ends before the
file does is sent without that check.
"""

import logging
import re
from collections.abc import Callable, Iterator
from itertools import chain

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from swapmeet.gateway.hub_api.snapshots import File
from swapmeet_registry import Version
from swapmeet_registry.contents import Contents

log = logging.getLogger("swapmeet.gateway")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def about(file: File, commit: str) -> dict[str, str]:
    """The headers that tell which file it is."""
    etag = f'"{file.sha256}"'
    return {
        "etag": etag,
        "x-linked-etag": etag,
        "x-linked-size": str(file.size),
        "x-repo-commit": commit,
        "accept-ranges": "bytes",
        "access-control-expose-headers": "etag, x-linked-etag, x-linked-size, x-repo-commit",
        "content-disposition": f"attachment; filename*=UTF-8''{file.path}; filename=\"{file.path}\";",
        "x-content-type-options": "nosniff",
    }


def send(
    request: Request,
    file: File,
    version: Version,
    headers: dict[str, str],
    contents: Contents,
    done: Callable[[], None],
) -> Response:
    """Answer with a file.

    Args:
        request: may ask for a range, or only if it has not the file yet.
        file: which.
        version: whose.
        headers: of the answer.
        contents: where it is read from.
        done: called when the file's last byte was sent.

    Raises:
        Corrupt: the file was changed, or is gone.
    """
    if request.headers.get("if-none-match") in (headers["etag"], "*"):
        return Response(status_code=304, headers=headers)
    wanted = _range(request, file, headers["etag"])
    start, end = wanted or (0, file.size)
    if start >= end and file.size:
        return Response(status_code=416, headers=headers | {"content-range": f"bytes */{file.size}"})
    headers = headers | {"content-length": str(end - start)}
    if wanted is not None:
        headers["content-range"] = f"bytes {start}-{end - 1}/{file.size}"
    status = 206 if wanted is not None else 200
    kind = "application/octet-stream"
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=kind)
    pieces = _pieces(file, version, start, end, contents)
    first = next(pieces, b"")  # what is wrong from the start is still an answer of its own
    return StreamingResponse(_told(chain((first,), pieces), end == file.size, done), status, headers, media_type=kind)


def _range(request: Request, file: File, etag: str) -> tuple[int, int] | None:
    """From where to before where; None where all is wanted, or what HTTP lets a server leave aside."""
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    if match is None or not (match[1] or match[2]) or request.headers.get("if-range", etag) != etag or not file.size:
        return None
    if not match[1]:
        return (file.size - min(int(match[2]), file.size), file.size)
    start, last = int(match[1]), int(match[2]) if match[2] else file.size - 1
    return None if last < start <= file.size - 1 else (start, min(last + 1, file.size))


def _pieces(file: File, version: Version, start: int, end: int, contents: Contents) -> Iterator[bytes]:
    if file.stored is None:
        yield file.data[start:end]
        return
    at = 0
    for chunk in _held_back(contents.blob(version, file.stored)):
        piece = chunk[max(start - at, 0) : max(end - at, 0)]
        at += len(chunk)
        if piece:
            yield piece
        if end <= at < file.size:
            return


def _held_back(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Each piece once the next was read without an error."""
    held = b""
    for chunk in chunks:
        if held:
            yield held
        held = chunk
    if held:
        yield held


def _told(pieces: Iterator[bytes], whole: bool, done: Callable[[], None]) -> Iterator[bytes]:
    yield from pieces
    if whole:
        try:
            done()
        except Exception:
            log.exception("a download was not counted")
