"""`/v1/uploads` as OpenAI's API has it: files in parts."""

from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from swapmeet.database.tables import UploadRow
from swapmeet.errors import RequestRefused
from swapmeet.files.joining import MOST_PARTS
from swapmeet.files.rules import LARGEST_PART, PURPOSES, shortened
from swapmeet.fine_tuning.wire import seconds
from swapmeet.gateway.bodies import form_body
from swapmeet.gateway.files import kept
from swapmeet.gateway.form import received
from swapmeet.gateway.tuning import Backend, Trainer

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])
FORM: dict[str, Any] = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string", "format": "binary"}},
}


class ExpiresAfter(BaseModel):
    """How long the file is kept once it is complete."""

    model_config = ConfigDict(extra="forbid", strict=True)

    anchor: Literal["created_at"]
    seconds: int


class NewUpload(BaseModel):
    """Body of `POST /v1/uploads`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    bytes: int
    filename: str
    mime_type: str
    purpose: str
    expires_after: ExpiresAfter | None = None


class Completion(BaseModel):
    """Body of `POST /v1/uploads/ID/complete`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    part_ids: Annotated[
        list[Annotated[str, Field(max_length=64)]], Field(min_length=1, max_length=MOST_PARTS, fail_fast=True)
    ]
    md5: Annotated[str, Field(max_length=64)] | None = None


@router.post("")
async def create(body: NewUpload, caller: Trainer, backend: Backend) -> dict[str, Any]:
    """Begin an upload of up to 8 GB, which is open for an hour."""
    if body.purpose not in PURPOSES:
        wanted = ", ".join(PURPOSES)
        raise RequestRefused(f"purpose is {shortened(body.purpose)}. Give one of {wanted}.", "purpose")
    life = body.expires_after.seconds if body.expires_after else None
    row = await run_in_threadpool(
        backend.uploads.create, caller.tenant, body.filename, body.purpose, body.mime_type, body.bytes, life
    )
    return upload_object(row)


@router.post("/{upload_id}/parts", openapi_extra=form_body(FORM))
async def add_part(upload_id: str, request: Request, caller: Trainer, backend: Backend) -> dict[str, Any]:
    """Add a part of up to 64 MB, in any order."""
    async with received(request, backend.spool, "data", LARGEST_PART, backend.threads) as form:
        if form.fields:
            name = next(iter(form.fields))
            raise RequestRefused(f"{shortened(name)} is no field of a part; there is data alone.", name[:80])
        part = await to_thread.run_sync(
            backend.uploads.add_part, caller.tenant, upload_id, form.path, limiter=backend.threads
        )
    return {
        "id": part.id,
        "object": "upload.part",
        "created_at": seconds(part.created_at),
        "upload_id": upload_id,
        "bytes": part.bytes,
    }


@router.post("/{upload_id}/complete")
async def complete(upload_id: str, body: Completion, caller: Trainer, backend: Backend) -> dict[str, Any]:
    """Make the file of its parts, in the order given."""
    upload, file = await to_thread.run_sync(
        backend.uploads.complete, caller.tenant, upload_id, body.part_ids, body.md5, caller, limiter=backend.joining
    )
    return upload_object(upload) | {"file": await kept(file, backend)}


@router.post("/{upload_id}/cancel")
async def cancel(upload_id: str, caller: Trainer, backend: Backend) -> dict[str, Any]:
    """End an upload; its parts are deleted."""
    return upload_object(await run_in_threadpool(backend.uploads.cancel, caller.tenant, upload_id, caller))


def upload_object(row: UploadRow) -> dict[str, Any]:
    """An upload as OpenAI's client reads it; it has no file until it is completed."""
    return {
        "id": row.id,
        "object": "upload",
        "bytes": row.bytes,
        "created_at": seconds(row.created_at),
        "expires_at": seconds(row.expires_at),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": row.status,
        "file": None,
    }
