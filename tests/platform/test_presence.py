"""Whoever leaves is not computed for."""

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.requests import Request

from swapmeet.gateway.errors import install_error_handlers
from swapmeet.gateway.presence import ClientLeft, while_connected


def request_that(*messages: dict[str, Any]) -> Request:
    """A request whose server says these things, one at each turn of the loop, and then nothing any more."""
    left = list(messages)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    return Request({"type": "http"}, receive)


def test_work_ends_when_the_client_leaves() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("work")

    request = request_that({"type": "http.request", "body": b""}, {"type": "http.disconnect"})
    with pytest.raises(ClientLeft):
        asyncio.run(while_connected(request, work()))
    assert ended == ["work"]


def test_who_stays_gets_the_result_or_the_error() -> None:
    async def work() -> str:
        await asyncio.sleep(0.01)
        return "done"

    async def fail() -> str:
        raise LookupError("no such thing")

    assert asyncio.run(while_connected(request_that(), work())) == "done"
    with pytest.raises(LookupError):
        asyncio.run(while_connected(request_that(), fail()))


def test_cancelling_reaches_the_work() -> None:
    async def both() -> bool:
        working = asyncio.Event()
        ended = asyncio.Event()

        async def work() -> None:
            working.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        task = asyncio.create_task(while_connected(request_that(), work()))
        await working.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return ended.is_set()

    assert asyncio.run(both())


def test_who_leaves_while_he_sends_is_no_error_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()
    install_error_handlers(app)

    @app.post("/")
    async def read(request: Request) -> None:
        await request.body()

    sent: list[dict[str, Any]] = []
    messages = [{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 499
    assert caplog.records == []
