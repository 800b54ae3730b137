"""Refuses request bodies that are too large, before anything reads them into memory.

FastAPI has a limit of its own, which answers in plain text where clients expect OpenAI's error object.
"""

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from swapmeet.gateway.errors import error_body

LONGEST_BODY = 16 << 20
"""Bytes of a request; far above what the longest context holds."""

CODE = "request_too_large"
MESSAGE = f"The body is over the {LONGEST_BODY >> 20} MiB that one request may have. Send less at once."
CLOSE = {"connection": "close"}
"""The rest of the body is not waited for."""


class BodyLimit:
    """Middleware: answers 413 to a body that is too large, whether its length is announced or not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on to the app, which reads the body through `counted`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if len(announced) > len(str(LONGEST_BODY)) or int(announced) > LONGEST_BODY:
            await JSONResponse(error_body(MESSAGE, CODE, 413), 413, CLOSE)(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > LONGEST_BODY:
                raise HTTPException(413, MESSAGE, CLOSE)
            return message

        await self._app(scope, counted, send)
