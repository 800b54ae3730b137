"""The gateway's own HTTP server, on a thread of the process that started the platform: no proxy stands before it."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from math import ceil

import uvicorn
from fastapi import FastAPI
from uvicorn.loops.auto import auto_loop_factory

from swapmeet.errors import PortInUse, ServerFailed

BACKLOG = 4096
START_SECONDS = 30


@contextmanager
def event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs in a thread of its own within the block; what is left on it at the end is cancelled."""
    started: Future[asyncio.AbstractEventLoop] = Future()

    def work() -> None:
        with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
            loop = runner.get_loop()
            loop.call_soon(started.set_result, loop)
            loop.run_forever()

    thread = threading.Thread(target=work, name="gateway", daemon=True)
    thread.start()
    loop = started.result()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@contextmanager
def listening(app: FastAPI, loop: asyncio.AbstractEventLoop, host: str, port: int, drain: float) -> Iterator[None]:
    """Answer requests within the block; at its end take no more, and give those under way `drain` seconds.

    Raises:
        PortInUse: another process listens on the port.
        ServerFailed: the app did not start.
    """
    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=ceil(drain),
        lifespan="on",
        server_header=False,
    )
    server = uvicorn.Server(config)
    with _bound(host, port) as bound:
        served = asyncio.run_coroutine_threadsafe(server.serve([bound]), loop)
        try:
            _wait_started(server, served)
            yield
        finally:
            server.should_exit = True
            served.result()


def _bound(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=BACKLOG)
    except OSError as error:
        raise PortInUse(
            f"Port {port} on {host} can not be used ({error.strerror}). Choose another: --port N."
        ) from error


def _wait_started(server: uvicorn.Server, served: "Future[None]") -> None:
    pause = threading.Event()
    for _ in range(START_SECONDS * 100):
        if server.started:
            return
        if served.done():
            break
        pause.wait(0.01)
    raise ServerFailed("The gateway's HTTP server did not start; its log says why.")
