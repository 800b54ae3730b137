"""Run the whole platform on this machine: a local Ray, the gateway and the engine replicas."""

import asyncio
import gc
import logging
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from swapmeet.cluster import ray_running
from swapmeet.errors import AlreadyRunning, PortInUse, ServerFailed
from swapmeet.preparation import prepare
from swapmeet.settings import Settings
from swapmeet_registry.bases import Base, BaseLibrary
from swapmeet_serving.board import BOARD

if TYPE_CHECKING:
    from fastapi import FastAPI

APPLICATION = "swapmeet"
SWITCH_SECONDS = 0.001
"""How long the queue's thread may compute while a request waits to go on; Python's own five milliseconds add up."""
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers: its URL and the operator's key."""

    url: str
    admin_key: str


@contextmanager
def serving(settings: Settings, tell: Tell = lambda _: None) -> Iterator[Running]:
    """Start everything, yield when requests are answered, and stop it all at the end.

    Raises:
        PortInUse: another process listens on the port.
        ServerFailed: no disk space, or the engine did not come up; the message says why.
    """
    check_port(settings)
    key = prepare(settings)
    base = BaseLibrary(settings.folder, tell).find(settings.base)
    from swapmeet.gateway.listener import event_loop, listening

    with event_loop() as loop, ray_running(settings):  # in this order: Ray tells its handles on the loop that it ends
        tell(f"Loading {base.name} as NF4; requests will be logged in {settings.request_log}")
        with (
            _engines(settings, base, loop) as app,
            listening(app, loop, settings.host, settings.port, settings.drain),
        ):
            yield Running(f"http://{settings.host}:{settings.port}", key)


def up(settings: Settings, ready: Callable[[Running], None], tell: Tell) -> None:
    """Serve until SIGINT or SIGTERM."""
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature is Python's
        stop.set()

    with serving(settings, tell) as running:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, on_signal)
        ready(running)
        gc.freeze()  # what was imported stays: to look through all of it again and again would halt requests
        sys.setswitchinterval(SWITCH_SECONDS)
        stop.wait()
        tell("Stopping")


def check_port(settings: Settings) -> None:
    """Fail early, and in one sentence, where the port is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise PortInUse(
                f"Port {settings.port} on {settings.host} can not be used ({error.strerror}). Choose another: --port N."
            ) from error


def _refuse_a_second(settings: Settings) -> None:
    """On a shared cluster, never replace the application that serves already."""
    from ray import serve

    if settings.ray_address and APPLICATION in serve.status().applications:
        raise AlreadyRunning(f"{settings.ray_address} serves {APPLICATION} already. Use that one, or delete it first.")


def _reason(error: RuntimeError) -> str:
    """What kept the application from starting: what a replica raised, if one did, or what Ray Serve says."""
    from ray import serve

    application = serve.status().applications.get(APPLICATION)
    told = [each.message.strip() for each in application.deployments.values()] if application else []
    raised = [message.splitlines()[-1] for message in told if "Traceback" in message or "Error" in message]
    reason = [*raised, *(str(error).strip() or type(error).__name__).splitlines()[-1:]][0]
    return re.sub(r"^swapmeet\w*(\.\w+)+: ", "", reason)  # ours say what to do, whatever they are called


@contextmanager
def _engines(settings: Settings, base: Base, loop: asyncio.AbstractEventLoop) -> Iterator["FastAPI"]:
    """Have the engines under Ray Serve within the block; gives the gateway's app in front of them, for the loop."""
    from ray import serve

    from swapmeet.gateway.deployment import build_engines, gateway_app

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    _refuse_a_second(settings)
    serve.start(proxy_location="Disabled")
    try:
        try:
            handle = serve.run(build_engines(settings, base), name=APPLICATION, route_prefix=None)
        except RuntimeError as error:
            raise ServerFailed(f"The engine did not start: {_reason(error)}") from error
        board = serve.get_deployment_handle(BOARD, APPLICATION)
        with gateway_app(settings, base, handle, board, loop) as app:
            yield app
    finally:
        serve.delete(APPLICATION)  # not serve.shutdown(): a cluster may be others', too, and our own ends with us
