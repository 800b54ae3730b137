"""A file's bytes over HTTP, whole or a range, for `/v1/adapters` as for clients of a Hub. Its ETag is its SHA-256.

What is sent from the first byte to the last is compared with its digest on the way, and the last piece is held back
until that was right: of a damaged file no client ever has all bytes, and of one in a single piece it gets an error and
nothing else. A digest is of the whole, so of a range only place and length are promised: bytes before it are not read
(but see `Contents.tail`), and those behind it neither. Whoever puts ranges together compares the whole with the ETag.
"""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException

from swapmeet.gateway.bodies import begun

log = logging.getLogger("swapmeet.gateway")
KIND = "application/octet-stream"
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Content:
    """A file that is sent.

    Attributes:
        size: its bytes.
        sha256: in hex.
        read: gives its bytes from one on, in pieces.
        sent: is called at the end of an answer, whole or broken off, with the first byte that was sent, and the one
            behind the last.
    """

    size: int
    sha256: str
    read: Callable[[int], Iterator[bytes]]
    sent: Callable[[int, int], None] = lambda *_: None

    @property
    def etag(self) -> str:
        """What tells it from others."""
        return f'"{self.sha256}"'


def send(request: Request, content: Content, headers: dict[str, str]) -> Response:
    """Answer a GET or HEAD with a file, or the one range of it that is asked for.

    Args:
        request: may have `range`, `if-range` and `if-none-match`. What is not one range is answered with all.
        content: the file.
        headers: of the answer, beside those that say which bytes it has.

    Raises:
        Corrupt: the file was changed, or is gone.
        HTTPException: 416, the file has no such bytes.
    """
    headers = headers | {"etag": content.etag, "accept-ranges": "bytes", "x-content-type-options": "nosniff"}
    if _known(request.headers.get("if-none-match", ""), content.etag):
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":  # for which HTTP has no ranges
        return Response(headers=headers | {"content-length": str(content.size)}, media_type=KIND)
    span = _span(request, content, headers)
    start, end = span or (0, content.size)
    headers["content-length"] = str(end - start)
    if span is not None:
        headers["content-range"] = f"bytes {start}-{end - 1}/{content.size}"
    chunks = begun(_told(_between(start, end, content), start, content))
    return StreamingResponse(chunks, 200 if span is None else 206, headers, media_type=KIND)


def _known(tags: str, etag: str) -> bool:
    """Whether a list of ETags, weak ones too, has this one."""
    return any(tag.strip().removeprefix("W/") in (etag, "*") for tag in tags.split(","))


def _span(request: Request, content: Content, headers: dict[str, str]) -> tuple[int, int] | None:
    """From where to before where; None for all."""
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    other = request.headers.get("if-range", content.etag) != content.etag
    if match is None or not (match[1] or match[2]) or other or not content.size:
        return None
    if not match[1]:
        start, end = max(content.size - int(match[2]), 0), content.size
    else:
        start, end = int(match[1]), min(int(match[2]) + 1 if match[2] else content.size, content.size)
        if match[2] and int(match[2]) < start:
            return None
    if start >= end:
        message = f"The file has {content.size} bytes, and none of those. Ask for others."
        raise HTTPException(416, message, headers | {"content-range": f"bytes */{content.size}"})
    return start, end


def _between(start: int, end: int, content: Content) -> Iterator[bytes]:
    at = start
    for chunk in _held_back(content.read(start)):
        yield chunk[: end - at]
        at += len(chunk)
        if end <= at < content.size:
            return


def _held_back(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Each piece once the next was read without an error: what is damaged ends too soon."""
    held = b""
    for chunk in chunks:
        if held:
            yield held
        held = chunk
    if held:
        yield held


def _told(chunks: Iterator[bytes], start: int, content: Content) -> Iterator[bytes]:
    """The same pieces; at the end it is told which bytes were sent."""
    at = start
    try:
        for chunk in chunks:
            yield chunk
            at += len(chunk)
    finally:
        try:
            content.sent(start, at)
        except Exception:
            log.exception("a download was not counted")
