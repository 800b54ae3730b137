"""Errors as a Hub tells them: by `X-Error-Code` its clients know what is missing, by `X-Error-Message` what to say."""

import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from swapmeet.gateway.errors import InvalidApiKey, describe_error
from swapmeet_registry import SignatureInvalid

WRONG_KEY = "Invalid credentials in Authorization header"
"""In just these words: clients tell a wrong token from a missing repository by them."""
_NOT_IN_HEADERS = re.compile(r"[^ -~]")


class HubRefused(Exception):
    """A request that is answered with an error.

    Args:
        status: the answer's HTTP status.
        message: what is wrong and what to do.
        error: the `X-Error-Code`, where clients know one.
        headers: the answer's other headers.
    """

    def __init__(self, status: int, message: str, error: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(status, message, error, headers)
        self.status, self.message, self.error, self.headers = status, message, error, headers or {}


def no_repository(name: str) -> HubRefused:
    """What is said of a repository that does not exist, and of one that the caller may not read."""
    shown = name if len(name) <= 200 else name[:200] + "…"
    return HubRefused(404, f"There is no adapter {shown} that this key may read. Check its name.", "RepoNotFound")


class HubRoute(APIRoute):
    """A route whose errors, those of its authority too, are a Hub's."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler, with its errors translated."""
        handle = super().get_route_handler()

        async def translated(request: Request) -> Response:
            try:
                return await handle(request)
            except Exception as error:
                return _answer(error, "authorization" in request.headers)

        return translated


def _answer(error: Exception, authorized: bool) -> Response:
    if isinstance(error, HubRefused):
        return _refusal(error.status, error.message, error.error, error.headers)
    if isinstance(error, InvalidApiKey):
        return _refusal(401, WRONG_KEY if authorized else f"{error} Clients of the Hub send HF_TOKEN.")
    if isinstance(error, RequestValidationError):
        wrong = "; ".join(f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in error.errors()[:20])
        return _refusal(400, wrong)
    if isinstance(error, HTTPException):
        return _refusal(error.status_code, error.detail, "", dict(error.headers or {}))
    status, body, headers = describe_error(error)
    # Of what is gated clients tell the user, and do not quietly use what they have of it.
    gated = "GatedRepo" if isinstance(error, SignatureInvalid) else ""
    return _refusal(status, body["error"]["message"], gated, headers)


def _refusal(status: int, message: str, code: str = "", headers: dict[str, Any] | None = None) -> Response:
    told = {"x-error-message": _NOT_IN_HEADERS.sub("?", message)} | ({"x-error-code": code} if code else {})
    body = {"error": message.encode(errors="backslashreplace").decode()}
    return JSONResponse(body, status, (headers or {}) | told)
