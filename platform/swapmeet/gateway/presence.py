"""Nothing is computed for clients that have left: servers tell an app of it only if it asks."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

Result = TypeVar("Result")


class ClientLeft(Exception):
    """The client closed its connection before there was an answer."""

    code = "client_left"


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """What some work gives, which is cancelled if the client leaves; the request's body has been read.

    Raises:
        ClientLeft: nobody waits for it any more.
    """
    working, leaving = asyncio.create_task(work), asyncio.create_task(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeft("The client left before there was an answer.")
    finally:
        for each in (working, leaving):
            each.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
