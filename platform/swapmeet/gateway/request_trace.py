"""One line of JSON for each API request, when it has ended: what it was, and when it reached each stage.

The id is the request's `x-request-id`, the client's own or else one that Ray Serve's proxy gave it; the proxy puts
it on the answer, errors too. Without such a proxy that is done here. The engine never sees it: two clients may send
the same, and neither's request may then end the other's. Prompts and answers are not logged.

Milliseconds of the request count from its arrival at the gateway, those of a call's `stages` from its arrival
at the replica, since clocks of different machines do not agree.
"""

import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from swapmeet.gateway.errors import LEFT, describe_error, error_code
from swapmeet.gateway.http_meter import HttpMeter
from swapmeet.gateway.services import Replicas
from swapmeet.tenancy.caller import without_keys
from swapmeet_serving import Call, Chunk
from swapmeet_serving.metrics import Snapshot
from swapmeet_serving.mix import format_mix

HEADER = "x-request-id"
LONGEST_ID = 128
LOGGED = "/v1/"
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
FILE_BYTES = 64 << 20
FILES = 4
log = logging.getLogger("swapmeet.requests")
_current: ContextVar["Trace | None"] = ContextVar("trace", default=None)


@dataclass(slots=True)
class Trace:
    """What is known of a request under way."""

    id: str
    began: float = field(default_factory=time.monotonic)
    arrived: datetime = field(default_factory=lambda: datetime.now(UTC))
    status: int | None = None
    first_byte: float | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)

    def elapsed(self) -> float:
        """Seconds since the request arrived."""
        return time.monotonic() - self.began

    def begin_call(self, call: Call) -> dict[str, Any]:
        """Note that a replica is asked; the adapter's digest is known by now."""
        noted: dict[str, Any] = {"id": call.request_id, "adapter": format_mix(call.mix) or None}
        noted |= {"sent": _ms(self.elapsed()), "outcome": "cancelled"}
        self.calls.append(noted)
        return noted

    def line(self, method: str, route: str) -> dict[str, Any]:
        """The line of the log."""
        return {
            "time": self.arrived.isoformat(timespec="milliseconds"),
            "request": self.id,
            "method": method,
            "route": route,
            "status": self.status,
            "first_byte": None if self.first_byte is None else _ms(self.first_byte),
            "finished": _ms(self.elapsed()),
            "calls": self.calls,
        }


class TracedReplicas:
    """Replicas that note each call, and how it ended, in the trace of the request it belongs to."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    async def generate(self, call: Call) -> AsyncGenerator[Chunk, None]:
        """Stream one answer."""
        noted = _begin(call)
        try:
            async with aclosing(self._replicas.generate(call)) as chunks:
                async for chunk in chunks:
                    if chunk.finish_reason:
                        _note_end(noted, chunk)
                    yield chunk
        except Exception as error:
            _note_error(noted, error)
            raise

    async def answer(self, call: Call) -> tuple[Chunk, ...]:
        """The whole answers, each as one chunk."""
        noted = _begin(call)
        try:
            whole = await self._replicas.answer(call)
        except Exception as error:
            _note_error(noted, error)
            raise
        for chunk in whole:
            _note_end(noted, chunk)
        return whole

    async def describe(self) -> dict[str, Any]:
        """What a replica holds."""
        return await self._replicas.describe()

    async def state(self) -> str:
        """Whether a replica runs."""
        return await self._replicas.state()

    async def measurements(self) -> list[Snapshot]:
        """What every process measured."""
        return await self._replicas.measurements()


class RequestTrace:
    """Middleware around all others: gives each request its id, counts it, and logs those of the API.

    Behind a proxy, which `proxied` says there is, ids on answers are the proxy's matter.
    """

    def __init__(self, app: ASGIApp, meter: HttpMeter, *, proxied: bool) -> None:
        self._app = app
        self._meter = meter
        self._proxied = proxied

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on to the app, and see what it sends."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = without_keys(Headers(scope=scope).get(HEADER, ""))[:LONGEST_ID]
        trace = Trace(given or uuid.uuid4().hex)
        _current.set(trace)

        async def seen(message: Message) -> None:
            if message["type"] == "http.response.start":
                trace.status = message["status"]
                if not self._proxied:
                    MutableHeaders(scope=message)[HEADER] = trace.id
            elif trace.first_byte is None:
                trace.first_byte = trace.elapsed()
            await send(message)

        self._meter.in_flight += 1
        try:
            await self._app(scope, receive, seen)
        except Exception as error:
            if trace.status is not None:
                raise  # too late for another answer
            status, body, headers = describe_error(error)
            await JSONResponse(body, status, headers)(scope, receive, seen)
        finally:
            self._meter.in_flight -= 1
            self._end(scope, trace)

    def _end(self, scope: Scope, trace: Trace) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        method = scope["method"] if scope["method"] in METHODS else "unknown"
        trace.status = trace.status or LEFT
        self._meter.ended(method, route, trace.status, trace.first_byte, trace.elapsed())
        if scope["path"].startswith(LOGGED):
            log.info(json.dumps(trace.line(method, route), separators=(",", ":")))


def request_id() -> str:
    """The id of the request under way; empty where there is none."""
    trace = _current.get()
    return trace.id if trace else ""


def log_to(path: Path) -> None:
    """Write the lines to a file that is rotated; only its owner may read it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handler = RotatingFileHandler(path, maxBytes=FILE_BYTES, backupCount=FILES - 1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def _begin(call: Call) -> dict[str, Any]:
    trace = _current.get() or Trace(call.request_id)  # a call outside of any request leaves no line
    return trace.begin_call(call)


def _note_end(noted: dict[str, Any], last: Chunk) -> None:
    """Of several answers, the tokens of all and the stages of the last."""
    noted["outcome"] = last.finish_reason
    made = noted.get("completion_tokens", 0) + last.completion_tokens
    noted |= {"prompt_tokens": last.prompt_tokens, "completion_tokens": made}
    if stages := last.stages:
        noted |= {"replica": stages.replica, "adapter_from": stages.adapter_from, "stages": stages.milliseconds}


def _note_error(noted: dict[str, Any], error: Exception) -> None:
    noted["outcome"] = error_code(error)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)
