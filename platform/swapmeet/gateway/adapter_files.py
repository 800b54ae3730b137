"""Pulling over HTTP: a version's files, as far as the policy on signatures lets them out."""

from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Request
from fastapi.responses import Response, StreamingResponse

from swapmeet.gateway.adapter_bytes import Content, send
from swapmeet.gateway.adapter_route import ADAPTER, Backend, Name, Reader, Ref
from swapmeet.gateway.authority import Caller
from swapmeet.gateway.downloads import Downloads
from swapmeet.gateway.services import Services
from swapmeet_registry import Manifest, NotFound, Reference, Registry, StoredFile, Version
from swapmeet_registry.admission import lora_weights
from swapmeet_registry.store_backend import StoreBackend, blob_key

router = APIRouter(prefix="/v1/adapters" + ADAPTER + "/versions/{ref}/files", tags=["adapters"])
LINK_SECONDS = 3600


async def downloads_of(request: Request) -> Downloads:
    """What counts the app's downloads, as a FastAPI dependency."""
    found = request.app.state.downloads
    assert isinstance(found, Downloads)
    return found


Counting = Annotated[Downloads, Depends(downloads_of)]
File = Annotated[str, Path(max_length=200)]
Text = Annotated[str | None, Header(max_length=300)]


@router.get("")
def files(
    ref: Ref, name: Name, backend: Backend, caller: Reader, downloads: Counting, links: bool = False
) -> dict[str, Any]:
    """A version's files; with `links`, where the store can, each with a `url` that needs no key for an hour.

    To ask for links to the weights counts as a download.
    """
    version, manifest = released(backend, caller, Reference.within(name, ref))
    urls = {file.path: _link(backend.registry, file) if links else None for file in manifest.files}
    data = [{"object": "adapter.file", **file.model_dump(), "url": urls[file.path]} for file in manifest.files]
    if urls.get(lora_weights.FILE) is not None:
        downloads.count(version, caller.tenant)
    return {
        "object": "list",
        "data": data,
        "has_more": False,
        "name": version.name,
        "version": version.version,
        "digest": version.digest,
    }


@router.head("/{path}", include_in_schema=False)
@router.get("/{path}", response_class=StreamingResponse)
def content(
    request: Request,
    ref: Ref,
    path: File,
    name: Name,
    backend: Backend,
    caller: Reader,
    downloads: Counting,
    range: Text = None,  # noqa: A002, ARG001 - the header's name; `send` reads it
    if_range: Text = None,  # noqa: ARG001
    if_none_match: Text = None,  # noqa: ARG001
) -> Response:
    """A file's bytes, or those that the header `range` names. Its ETag is its SHA-256."""
    version, manifest = released(backend, caller, Reference.within(name, ref))
    file = next((file for file in manifest.files if file.path == path), None)
    if file is None:
        raise NotFound(f"{version} has no file {path[:200]!r}. List its files.")
    read = partial(backend.registry.stream, version, file)
    content = Content(file.size, file.sha256, read)
    if file.path == lora_weights.FILE:
        content = replace(content, sent=partial(downloads.sent, version, caller.tenant, file.size))
    return send(request, content, {"x-swapmeet-adapter": version.pinned})


def released(backend: Services, caller: Caller, reference: Reference) -> tuple[Version, Manifest]:
    """A version whose bytes a caller may have, and what it consists of.

    Raises:
        NotFound: there is none, or the caller may not know of it.
        Recalled: it was recalled.
        SignatureInvalid: nobody who is trusted signed it, and the policy asks for that.
    """
    version = backend.access.resolve(caller, reference)
    manifest = backend.registry.manifest(version)
    backend.registry.require_signed(version, manifest)
    return version, manifest


def _link(registry: Registry, file: StoredFile) -> str | None:
    """An address that the store itself answers at, if it gives such."""
    if not isinstance(registry.backend, StoreBackend):
        return None
    return registry.backend.store.presigned(blob_key(file), LINK_SECONDS)
