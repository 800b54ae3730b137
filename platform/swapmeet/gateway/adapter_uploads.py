"""Publishing over HTTP: `POST …/uploads`, the files' parts by `PUT`, and `complete`. All of it may be sent again."""

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.concurrency import run_in_threadpool

from swapmeet.adapter_publishes import LARGEST, Publishes, PublishRequest, publish_object
from swapmeet.database.tables import PublishRow
from swapmeet.gateway.adapter_route import ADAPTER, Backend, Name, Publisher
from swapmeet.gateway.authority import Caller
from swapmeet.gateway.marketplace import Noting
from swapmeet.gateway.raw_body import RAW, spooled_body
from swapmeet.gateway.tuning import Backend as Spool
from swapmeet_registry import AdapterName

router = APIRouter(prefix="/v1/adapters" + ADAPTER + "/uploads", tags=["adapters"])
Sha256 = Annotated[str | None, Header(alias="x-content-sha256", pattern="^[0-9a-f]{64}$")]
UploadId = Annotated[str, Path(max_length=80)]


async def publishes_of(request: Request) -> Publishes:
    """The app's publishes, as a FastAPI dependency."""
    found = request.app.state.publishes
    assert isinstance(found, Publishes)
    return found


Coming = Annotated[Publishes, Depends(publishes_of)]


@router.post("")
def begin(
    body: PublishRequest,
    name: Name,
    backend: Backend,
    coming: Coming,
    caller: Publisher,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> dict[str, Any]:
    """Begin to publish a version: say which files will come. The same `run`, or idempotency key, is the same upload."""
    backend.access.require_own(caller, name)
    row = coming.begin(name, body, idempotency_key)
    return publish_object(row, coming.missing(row))


@router.get("/{upload}")
def show(upload: UploadId, name: Name, backend: Backend, coming: Coming, caller: Publisher) -> dict[str, Any]:
    """An upload: which parts are missing, or which version it became."""
    backend.access.require_own(caller, name)
    row = coming.get(name, upload)
    return publish_object(row, coming.missing(row))


@router.put("/{upload}/files/{path}", openapi_extra=RAW)
async def add_part(
    upload: UploadId,
    path: Annotated[str, Path(max_length=200)],
    request: Request,
    name: Name,
    backend: Backend,
    coming: Coming,
    spool: Spool,
    caller: Publisher,
    offset: Annotated[int, Query(ge=0, le=LARGEST)] = 0,
    sha256: Sha256 = None,
) -> dict[str, Any]:
    """Send the part of a file that begins at a byte: a multiple of `part_size`. Its SHA-256 is compared, if given."""
    row = await run_in_threadpool(_find, backend, coming, caller, name, upload)
    async with spooled_body(request, spool.spool, spool.threads) as body:
        await to_thread.run_sync(coming.add, row, path, offset, body, sha256, limiter=spool.threads)
    return {"object": "adapter.upload.part", "upload": row.id, "path": path, "offset": offset}


@router.post("/{upload}/complete")
async def complete(
    upload: UploadId,
    name: Name,
    backend: Backend,
    coming: Coming,
    changed: Noting,
    spool: Spool,
    caller: Publisher,
) -> dict[str, Any]:
    """Check the files and publish the version; asked again, the answer is the same."""
    row = await run_in_threadpool(_find, backend, coming, caller, name, upload)
    done = await to_thread.run_sync(coming.complete, row, caller, limiter=spool.joining)
    await run_in_threadpool(changed, name)
    return publish_object(done, {})


@router.delete("/{upload}")
def cancel(upload: UploadId, name: Name, backend: Backend, coming: Coming, caller: Publisher) -> dict[str, Any]:
    """End an upload; its parts are deleted."""
    return publish_object(coming.cancel(_find(backend, coming, caller, name, upload), caller), {})


def _find(backend: Backend, coming: Publishes, caller: Caller, name: AdapterName, upload: str) -> PublishRow:
    backend.access.require_own(caller, name)
    return coming.get(name, upload)
