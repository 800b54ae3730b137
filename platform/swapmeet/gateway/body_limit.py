"""Refuses request bodies that are too large, before anything reads them into memory."""

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from swapmeet.gateway.errors import error_body

LONGEST_BODY = 16 << 20
"""Bytes; far above what the longest context holds."""


class BodyLimit:
    """Middleware: answers 413 to a body above `limit` bytes, whether its length is announced or not."""

    def __init__(self, app: ASGIApp, limit: int = LONGEST_BODY) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on to the app, which reads the body through `counted`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._limit:
            await self._refuse(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._limit:
                raise HTTPException(413, self._message())
            return message

        await self._app(scope, counted, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = error_body(self._message(), "request_too_large", 413)
        await JSONResponse(body, 413, {"connection": "close"})(scope, receive, send)

    def _message(self) -> str:
        return f"The request's body is over {self._limit >> 20} MiB. Send less in one request."
