"""Run the whole platform on this machine: a local Ray, the gateway and the engine replicas."""

import asyncio
import gc
import logging
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from swapmeet.cluster import abandoned, claim, ray_running
from swapmeet.errors import AlreadyRunning, PortInUse, ServerFailed
from swapmeet.preparation import prepare
from swapmeet.settings import Settings
from swapmeet_registry.bases import Base, BaseLibrary
from swapmeet_serving.board import BOARD

if TYPE_CHECKING:
    from fastapi import FastAPI

APPLICATION = "swapmeet"
POLL_SECONDS = 0.5
OURS = re.compile(r"^swapmeet\w*(\.\w+)+: ")
"""How an error of ours begins in what Ray tells; these say what to do, whatever they are called."""
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
    """On a shared cluster, never replace the application that serves already; unless its server was killed."""
    from ray import serve

    if settings.ray_address and APPLICATION in serve.status().applications and not abandoned(APPLICATION):
        raise AlreadyRunning(f"{settings.ray_address} serves {APPLICATION} already. Use that one, or delete it first.")
    claim(APPLICATION)


def _await_engines() -> None:
    """Return when they run. A reason of ours ends it at once: Ray would try twice more, and meet the same again.

    Raises:
        ServerFailed: they do not come up.
    """
    from ray import serve

    while True:
        application = serve.status().applications.get(APPLICATION)
        if application is None:
            raise ServerFailed("The engine did not start: somebody deleted it from the cluster.")
        if application.status == "RUNNING":
            return
        told = [each.message.strip() for each in application.deployments.values()]
        raised = [message.splitlines()[-1] for message in told if "Traceback" in message or "Error" in message]
        ours = [reason for reason in raised if OURS.match(reason)]
        if ours or application.status == "DEPLOY_FAILED":
            reason = [*ours, *raised, *application.message.strip().splitlines()[-1:], "its log says why"][0]
            raise ServerFailed(f"The engine did not start: {OURS.sub('', reason)}")
        time.sleep(POLL_SECONDS)


@contextmanager
def _engines(settings: Settings, base: Base, loop: asyncio.AbstractEventLoop) -> Iterator["FastAPI"]:
    """Have the engines under Ray Serve within the block; gives the gateway's app in front of them, for the loop."""
    from ray import serve

    from swapmeet.gateway.deployment import build_engines, gateway_app

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    _refuse_a_second(settings)
    serve.start(proxy_location="Disabled")
    try:
        target = serve.RunTarget(build_engines(settings, base), name=APPLICATION, route_prefix=None)
        (handle,) = serve.run_many([target], wait_for_applications_running=False)
        _await_engines()
        board = serve.get_deployment_handle(BOARD, APPLICATION)
        with gateway_app(settings, base, handle, board, loop) as app:
            yield app
    finally:
        serve.delete(APPLICATION)  # not serve.shutdown(): a cluster may be others', too, and our own ends with us
