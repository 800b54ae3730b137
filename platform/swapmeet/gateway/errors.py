"""Every failure leaves as OpenAI's error object: `{"error": {"message", "type", "param", "code"}}`."""

import logging
import traceback
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from swapmeet.files.rules import shortened

log = logging.getLogger("swapmeet.gateway")

LEFT = 499
"""The status, as nginx has it, of a request whose client left before it was answered."""

STATUS = {
    "invalid_api_key": 401,
    "permission_denied": 403,
    "not_found": 404,
    "conflict": 409,
    "insufficient_quota": 429,
    "model_not_found": 404,
    "model_recalled": 410,
    "signature_invalid": 403,
    "job_not_found": 404,
    "invalid_job_state": 400,
    "invalid_name": 404,
    "invalid_query": 400,
    "base_mismatch": 400,
    "adapter_refused": 400,
    "adapter_unsound": 400,
    "context_length_exceeded": 400,
    "invalid_request": 400,
    "invalid_training_file": 400,
    "invalid_n_examples": 400,
    "invalid_hyperparameters": 400,
    "invalid_chat_template": 400,
    "device_missing": 400,
    "out_of_memory": 400,
    "base_invalid": 400,
    "base_not_found": 404,
    "request_too_large": 413,
    "adapter_too_large": 400,
    "adapter_unsupported": 400,
    "adapter_overflows": 400,
    "no_chat_template": 400,
    "webhook_refused": 400,
    "webhook_failed": 400,
    "rate_limit_exceeded": 429,
    "client_left": LEFT,
    "overloaded": 503,
    "engine_dead": 503,
    "store_unavailable": 503,
    "store_denied": 503,
    "store_full": 503,
    "database_unavailable": 503,
    "planning_failed": 503,
    "index_unavailable": 503,
    "corrupt": 500,
    "secret_key_wrong": 500,
    "signing_key_invalid": 500,
}
HTTP_CODES = {
    400: "invalid_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
}
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""Of OpenAI's; of other statuses below 500 it is `invalid_request_error`, and from there on `server_error`."""
RETRY_AFTER = {
    "rate_limit_exceeded": "1",
    "overloaded": "1",
    "engine_dead": "5",
    "store_unavailable": "5",
    "database_unavailable": "5",
    "planning_failed": "5",
    "index_unavailable": "5",
}
MOST_MISTAKES = 20
"""So many of a request's are told: a long list may have a million."""
FINAL = {"conflict", "corrupt", "insufficient_quota", "secret_key_wrong", "signing_key_invalid", "store_denied"}
"""Failures that a second try can not mend, although their status says otherwise."""


class InvalidApiKey(Exception):
    """No key, or not one of ours."""

    code = "invalid_api_key"

    def __init__(self) -> None:
        super().__init__(
            "Missing, unknown, revoked or expired API key. Send a good one as 'Authorization: Bearer KEY'."
        )


class ErrorDetail(BaseModel):
    """What went wrong, as OpenAI's client reads it."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail


ANSWERS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request can not be served; the message says what to change."},
    "5XX": {"model": ErrorAnswer, "description": "The server can not serve it at present."},
}
"""What the API's description says of errors."""


def error_body(message: str, code: str, status: int, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    message = message.encode(errors="backslashreplace").decode()  # it may quote a lone surrogate of the request's
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_code(error: BaseException) -> str:
    """The code that the answer to an error bears."""
    code = getattr(_cause(error), "code", None)
    return code if isinstance(code, str) and code in STATUS else "internal_error"


def describe_error(error: BaseException) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers for an error; one of ours says its own `code`, any other is a 500 without detail."""
    error, code = _cause(error), error_code(error)
    if code not in STATUS:
        log.error("unexpected error: %s", "".join(traceback.format_exception(error)))
        return 500, error_body("The server failed; its log says why.", code, 500), {}
    status = STATUS[code]
    headers = {"retry-after": RETRY_AFTER[code]} if code in RETRY_AFTER else {}
    if code in FINAL:
        headers["x-should-retry"] = "false"
    headers |= getattr(error, "headers", {})
    code = "model_not_found" if code == "invalid_name" else code
    return status, error_body(str(error), code, status, getattr(error, "param", None)), headers


def install_error_handlers(app: FastAPI, *known: type[Exception]) -> None:
    """Answer every error of the app in OpenAI's form; `known` are the hierarchies whose errors carry a code."""

    async def ours(_: Request, error: Exception) -> JSONResponse:
        status, body, headers = describe_error(error)
        return JSONResponse(body, status, headers)

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        mistakes = [(_where(e), _say(e)) for e in error.errors()[:MOST_MISTAKES]]
        message = "; ".join(f"{where}: {what}" if where else what for where, what in mistakes)
        return JSONResponse(error_body(message, "invalid_request", 400, mistakes[0][0] or None), 400)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = HTTP_CODES.get(error.status_code, "http_error")
        body = error_body(_of_route(request, error), code, error.status_code)
        return JSONResponse(body, error.status_code, error.headers)

    async def left(_: Request, __: Exception) -> Response:
        return Response(status_code=LEFT)  # nobody reads it

    app.add_exception_handler(ClientDisconnect, left)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    for kind in (*known, Exception):
        app.add_exception_handler(kind, ours)


def _of_route(request: Request, error: HTTPException) -> str:
    """What is wrong with a request that no route takes; what other errors say."""
    path = shortened(request.url.path)
    if error.status_code == 404:
        return f"There is nothing at {path}. /docs lists what there is; the base URL ends in /v1."
    if error.status_code == 405:
        return f"{path} does not take {request.method}, but {(error.headers or {}).get('allow', 'nothing')}."
    return str(error.detail)


def _where(error: Any) -> str:
    """The field; nothing where the body as a whole is wrong."""
    return "" if error["type"] == "json_invalid" else ".".join(map(str, error["loc"][1:]))


def _say(error: Any) -> str:
    if error["type"] == "json_invalid":
        return f"the body is no JSON ({error['ctx']['error']}, at character {error['loc'][-1]})"
    if not error["loc"][1:] and isinstance(error["input"], bytes):
        return "the body was not read as JSON. Send it with 'content-type: application/json'"
    if error["type"] == "extra_forbidden":
        return "this parameter is unknown or not supported; leave it out"
    return str(error["msg"])


def _cause(error: BaseException) -> BaseException:
    """The error that a replica raised, out of Ray's wrapper."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error
