"""Refuses request bodies that are too large, before anything reads them into memory.

FastAPI has a limit of its own, which answers in plain text where clients expect OpenAI's error object.
"""

import re

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from swapmeet.files.rules import LARGEST_FILE, LARGEST_PART
from swapmeet.gateway.errors import error_body

LONGEST_BODY = 16 << 20
"""Bytes of a request; far above what the longest context holds."""

CODE = "request_too_large"
FORM_BYTES = 1 << 20
"""What a form may have beside its file."""
FORMS = (
    (re.compile(r"/v1/files/?"), LARGEST_FILE + FORM_BYTES),
    (re.compile(r"/v1/uploads/[^/]+/parts/?"), LARGEST_PART + FORM_BYTES),
)
"""Requests whose bodies go to the disk as they come."""
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
        longest = longest_body(scope["path"])
        message = f"The body is over the {longest >> 20} MiB that this request may have. Send less at once."
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if len(announced) > len(str(longest)) or int(announced) > longest:
            await JSONResponse(error_body(message, CODE, 413), 413, CLOSE)(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            received = await receive()
            read += len(received.get("body", b""))
            if read > longest:
                raise HTTPException(413, message, CLOSE)
            return received

        await self._app(scope, counted, send)


def longest_body(path: str) -> int:
    """Bytes that the body of a request for a path may have."""
    return next((longest for pattern, longest in FORMS if pattern.fullmatch(path)), LONGEST_BODY)
