"""Bodies that are a file's bytes and nothing else: to the disk as they come, so memory is bounded by the pieces."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from anyio import CapacityLimiter, to_thread
from starlette.requests import ClientDisconnect, Request

from swapmeet.files.blobs import spooled
from swapmeet.gateway.presence import ClientLeft
from swapmeet_registry.stores.files import os_errors

PIECE = 1 << 20
RAW: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
"""What the API's description says of such a body."""


@asynccontextmanager
async def spooled_body(request: Request, folder: Path, threads: CapacityLimiter) -> AsyncIterator[Path]:
    """A file with a request's body, within the block; how long the body may be, the middleware knows.

    Raises:
        ClientLeft: before all of it had come.
    """
    with spooled(folder) as stream:
        held = bytearray()

        def write() -> None:
            with os_errors("keep the part"):
                stream.write(held)
                stream.flush()
            held.clear()

        try:
            async for chunk in request.stream():
                held += chunk
                if len(held) >= PIECE:
                    await to_thread.run_sync(write, limiter=threads)
        except ClientDisconnect as error:
            raise ClientLeft("The client left in the middle of a part.") from error
        await to_thread.run_sync(write, limiter=threads)
        yield Path(stream.name)
