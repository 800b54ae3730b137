"""Run the whole platform on this machine: a local Ray, the gateway and the engine replicas."""

import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import httpx

from swapmeet.cluster import ray_running
from swapmeet.errors import AlreadyRunning, PortInUse, ServerFailed
from swapmeet.preparation import prepare
from swapmeet.settings import Settings
from swapmeet_registry.bases import Base, BaseLibrary

READY_SECONDS = 300
APPLICATION = "swapmeet"
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
    with ray_running(settings):
        from ray import serve
        from ray.serve.config import HTTPOptions

        tell(f"Loading {base.name} as NF4; requests will be logged in {settings.request_log}")
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        _refuse_a_second(settings)
        serve.start(http_options=HTTPOptions(host=settings.host, port=settings.port))
        try:
            _run(settings, base)
            running = Running(f"http://{settings.host}:{settings.port}", key)
            _wait_ready(running.url)
            yield running
        finally:
            if settings.ray_address:
                serve.delete(APPLICATION)  # a cluster of others: their applications stay
            else:
                serve.shutdown()  # type: ignore[no-untyped-call]


def up(settings: Settings, ready: Callable[[Running], None], tell: Tell) -> None:
    """Serve until SIGINT or SIGTERM."""
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature is Python's
        stop.set()

    with serving(settings, tell) as running:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, on_signal)
        ready(running)
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


def _run(settings: Settings, base: Base) -> None:
    from ray import serve

    from swapmeet.gateway.deployment import build

    try:
        serve.run(build(settings, base), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise ServerFailed(f"The engine did not start: {reason}") from error


def _wait_ready(url: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz", timeout=30, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass  # the proxy is not listening yet
        time.sleep(0.2)
    raise ServerFailed(
        f"{url} did not become ready within {READY_SECONDS} s. Look into Ray's logs, /tmp/ray by default."
    )
