"""The gateway's own HTTP server, in a thread of the process that started the platform: no proxy stands before it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil

import uvicorn
from fastapi import FastAPI

from swapmeet.errors import PortInUse, ServerFailed

BACKLOG = 4096
START_SECONDS = 30


@contextmanager
def listening(app: FastAPI, host: str, port: int, drain: float) -> Iterator[None]:
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
        lifespan="off",
        server_header=False,
    )
    server = uvicorn.Server(config)
    with _bound(host, port) as bound:
        thread = threading.Thread(target=server.run, args=([bound],), name="gateway", daemon=True)
        thread.start()
        try:
            _wait_started(server, thread)
            yield
        finally:
            server.should_exit = True
            thread.join()


def _bound(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=BACKLOG)
    except OSError as error:
        raise PortInUse(
            f"Port {port} on {host} can not be used ({error.strerror}). Choose another: --port N."
        ) from error


def _wait_started(server: uvicorn.Server, thread: threading.Thread) -> None:
    pause = threading.Event()
    for _ in range(START_SECONDS * 100):
        if server.started:
            return
        if not thread.is_alive():
            break
        pause.wait(0.01)
    raise ServerFailed("The gateway's HTTP server did not start; its log says why.")
