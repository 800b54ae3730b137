"""Pulling over HTTP: a version's files, whole or from some byte on, each checked against its SHA-256 as it is read."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Request
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException

from swapmeet.gateway.adapter_route import ADAPTER, Backend, Name, Reader, Ref
from swapmeet.gateway.authority import Caller
from swapmeet.gateway.bodies import begun
from swapmeet.gateway.services import Services
from swapmeet_registry import AdapterName, NotFound, Reference, Registry, StoredFile, Version
from swapmeet_registry.admission import lora_weights
from swapmeet_registry.store_backend import StoreBackend, blob_key

router = APIRouter(prefix="/v1/adapters" + ADAPTER + "/versions/{ref}/files", tags=["adapters"])
LINK_SECONDS = 3600
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")

Downloaded = Callable[[Version, str], None]
"""Called with a version whose weights are sent, and to which tenant."""


async def downloads(request: Request) -> Downloaded:
    """What counts the app's downloads, as a FastAPI dependency."""
    found: Downloaded = request.app.state.downloaded
    return found


Counting = Annotated[Downloaded, Depends(downloads)]
File = Annotated[str, Path(max_length=200)]
Text = Annotated[str | None, Header(max_length=300)]


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes from `start` until before `end`."""

    start: int
    end: int


@router.get("")
def files(ref: Ref, name: Name, backend: Backend, caller: Reader, downloaded: Counting) -> dict[str, Any]:
    """A version's files; where the store can, each with a `url` that needs no key and is good for an hour."""
    version = backend.access.resolve(caller, Reference.within(name, ref))
    data = [
        {"object": "adapter.file", **file.model_dump(), "url": _link(backend.registry, file)}
        for file in backend.registry.manifest(version).files
    ]
    if any(each["url"] and each["path"] == lora_weights.FILE for each in data):
        downloaded(version, caller.tenant)  # what the store sends is not seen here
    return {
        "object": "list",
        "data": data,
        "has_more": False,
        "name": version.name,
        "version": version.version,
        "digest": version.digest,
    }


@router.get("/{path}", response_class=StreamingResponse)
def content(
    ref: Ref,
    path: File,
    name: Name,
    backend: Backend,
    caller: Reader,
    downloaded: Counting,
    range: Text = None,  # noqa: A002 - the header's name
    if_range: Text = None,
    if_none_match: Text = None,
) -> Response:
    """A file's bytes, or those that the header `range` names. Its ETag is its SHA-256."""
    version, file = _find(ref, path, name, backend, caller)
    headers = _headers(version, file)
    if if_none_match is not None and if_none_match in (headers["etag"], "*"):
        return Response(status_code=304, headers=headers)
    if file.path == lora_weights.FILE:
        downloaded(version, caller.tenant)
    span = _span(range, file.size) if if_range in (None, headers["etag"]) else None
    if span is not None:
        headers["content-range"] = f"bytes {span.start}-{span.end - 1}/{file.size}"
    wanted = span or Span(0, file.size)
    headers["content-length"] = str(wanted.end - wanted.start)
    chunks = begun(_some(_whole(backend.registry.stream(version, file)), wanted))
    return StreamingResponse(chunks, 206 if span else 200, headers=headers, media_type="application/octet-stream")


@router.head("/{path}", include_in_schema=False)
def look(ref: Ref, path: File, name: Name, backend: Backend, caller: Reader) -> Response:
    """A file's size and SHA-256."""
    version, file = _find(ref, path, name, backend, caller)
    return Response(headers=_headers(version, file) | {"content-length": str(file.size)})


def _find(ref: str, path: str, name: AdapterName, backend: Services, caller: Caller) -> tuple[Version, StoredFile]:
    version = backend.access.resolve(caller, Reference.within(name, ref))
    for file in backend.registry.manifest(version).files:
        if file.path == path:
            return version, file
    raise NotFound(f"{version} has no file {path[:200]!r}. List its files.")


def _headers(version: Version, file: StoredFile) -> dict[str, str]:
    return {
        "etag": f'"{file.sha256}"',
        "accept-ranges": "bytes",
        "x-swapmeet-adapter": version.pinned,
        "x-content-type-options": "nosniff",
    }


def _link(registry: Registry, file: StoredFile) -> str | None:
    """An address that the store itself answers at, if it gives such."""
    if not isinstance(registry.backend, StoreBackend):
        return None
    presigned = getattr(registry.backend.store, "presigned", None)
    return presigned(blob_key(file), LINK_SECONDS) if presigned else None


def _span(text: str | None, size: int) -> Span | None:
    """What a header asks for; None for all, which is also the answer to what is no single range.

    Raises:
        HTTPException: 416, where the file has no such bytes.
    """
    found = _RANGE.fullmatch(text or "")
    if found is None or not (found[1] or found[2]):
        return None
    if found[1]:
        start, end = int(found[1]), min(int(found[2]) + 1 if found[2] else size, size)
        if found[2] and int(found[2]) < start:
            return None
    else:
        start, end = max(size - int(found[2]), 0), size
    if start >= end:
        message = f"The file has {size} bytes, and none of those. Ask for others."
        raise HTTPException(416, message, {"content-range": f"bytes */{size}"})
    return Span(start, end)


def _whole(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Pieces of which the last comes only once all of them were found right: what is damaged ends too soon."""
    held: bytes | None = None
    for chunk in chunks:
        if held is not None:
            yield held
        held = chunk
    if held is not None:
        yield held


def _some(chunks: Iterator[bytes], span: Span) -> Iterator[bytes]:
    """What of some pieces is in a span."""
    at = 0
    for chunk in chunks:
        if at >= span.end:
            return
        if part := chunk[max(span.start - at, 0) : span.end - at]:
            yield part
        at += len(chunk)
