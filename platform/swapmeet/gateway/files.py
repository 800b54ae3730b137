"""`/v1/files` as OpenAI's API has it."""

from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import quote

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from swapmeet.database.tables import FileRow
from swapmeet.errors import RequestRefused
from swapmeet.files.files import Order
from swapmeet.files.rules import FINE_TUNE, LARGEST_FILE, PURPOSES, refuse, shortened
from swapmeet.fine_tuning.wire import seconds
from swapmeet.gateway.bodies import form_body
from swapmeet.gateway.form import received
from swapmeet.gateway.pages import page
from swapmeet.gateway.tuning import Backend, Reader, Trainer

router = APIRouter(prefix="/v1/files", tags=["files"])
MOST = 10_000
ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"
FIELDS = ("purpose", ANCHOR, SECONDS)
FORM: dict[str, Any] = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": list(PURPOSES)},
        ANCHOR: {"type": "string", "enum": ["created_at"]},
        SECONDS: {"type": "string", "pattern": "^[0-9]+$"},
    },
}


@router.post("", openapi_extra=form_body(FORM))
async def create(request: Request, caller: Trainer, backend: Backend) -> dict[str, Any]:
    """Keep a file of up to 512 MB; one to train on is checked next, and has the status `processed` or `error` then."""
    async with received(request, backend.spool, "file", LARGEST_FILE, backend.threads) as form:
        purpose, expires_after = _described(form.fields)
        row = await to_thread.run_sync(
            lambda: backend.files.create(caller.tenant, form.filename, purpose, form.path, expires_after, by=caller),
            limiter=backend.threads,
        )
    return await kept(row, backend)


async def kept(row: FileRow, backend: Backend) -> dict[str, Any]:
    """A new file's object; its check begins."""
    if row.status == "uploaded":
        backend.validator.submit(row.id)
    return checked_object(row)


@router.get("")
async def files(
    caller: Reader,
    backend: Backend,
    purpose: Annotated[str | None, Query(max_length=40)] = None,
    limit: Annotated[int, Query(ge=1, le=MOST)] = MOST,
    order: Order = "desc",
    after: Annotated[str | None, Query(max_length=64)] = None,
) -> dict[str, Any]:
    """The caller's files, newest first unless asked otherwise."""
    if purpose is not None and not purpose.isprintable():
        raise RequestRefused(f"purpose is {shortened(purpose)}. Give one of {', '.join(PURPOSES)}.", "purpose")
    rows, more = await run_in_threadpool(backend.files.page, caller.tenant, after, limit, order, purpose)
    return page([file_object(row) for row in rows], more)


@router.get("/{file_id}")
async def file(file_id: str, caller: Reader, backend: Backend) -> dict[str, Any]:
    """One file."""
    return checked_object(await run_in_threadpool(backend.files.get, caller.tenant, file_id))


@router.delete("/{file_id}")
async def delete(file_id: str, caller: Trainer, backend: Backend) -> dict[str, Any]:
    """Delete a file; unfinished jobs that were given it go on."""
    await run_in_threadpool(backend.files.delete, caller.tenant, file_id, caller)
    return {"id": file_id, "object": "file", "deleted": True}


@router.get("/{file_id}/content", response_class=StreamingResponse)
async def content(file_id: str, caller: Reader, backend: Backend) -> StreamingResponse:
    """A file's bytes, as they were uploaded."""
    row = await run_in_threadpool(backend.files.get, caller.tenant, file_id)
    chunks: Iterator[bytes] = await run_in_threadpool(backend.files.read, row)
    headers = {
        "content-length": str(row.bytes),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(row.filename, safe='')}",
        "x-content-type-options": "nosniff",
    }
    return StreamingResponse(chunks, media_type="application/octet-stream", headers=headers)


def checked_object(row: FileRow) -> dict[str, Any]:
    """One file, and all that checking it found."""
    return file_object(row) | {"report": row.report}


def file_object(row: FileRow) -> dict[str, Any]:
    """A file as OpenAI's client reads it."""
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.bytes,
        "created_at": seconds(row.created_at),
        "expires_at": seconds(row.expires_at),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": row.status,
        "status_details": row.status_details,
    }


def _described(fields: dict[str, str]) -> tuple[str, int | None]:
    """Purpose and life time, out of the form's text fields."""
    mistakes = [
        (name, f"{shortened(name)} is no field; known are file, {', '.join(FIELDS)}.")
        for name in fields
        if name not in FIELDS
    ]
    if "purpose" not in fields:
        mistakes.append(("purpose", f"purpose is missing. For files to train on, give {FINE_TUNE!r}."))
    elif fields["purpose"] not in PURPOSES:
        wanted = ", ".join(PURPOSES)
        mistakes.append(("purpose", f"purpose is {shortened(fields['purpose'])}. Give one of {wanted}."))
    if fields.get(ANCHOR, "created_at") != "created_at":
        mistakes.append((ANCHOR, f"{ANCHOR} is {shortened(fields[ANCHOR])}. Give created_at."))
    life = fields.get(SECONDS)
    if life is None and ANCHOR in fields:
        mistakes.append((SECONDS, f"{SECONDS} is missing. Give it, or leave {ANCHOR} out."))
    if life is not None and not (life.isascii() and life.isdecimal() and len(life) < 12):
        mistakes.append((SECONDS, f"{SECONDS} is {shortened(life)}. Give a whole number."))
    refuse(mistakes)
    return fields["purpose"], None if life is None else int(life)
