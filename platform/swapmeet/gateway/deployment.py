"""The gateway as a Ray Serve deployment in front of the engine replicas."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import ray
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from swapmeet.background import at_work
from swapmeet.gateway.assembly import assemble
from swapmeet.gateway.http_meter import HttpMeter
from swapmeet.gateway.request_trace import log_to
from swapmeet.preparation import prepare
from swapmeet.settings import Settings, load_settings
from swapmeet_registry.bases import Base, BaseLibrary
from swapmeet_serving import Call, Chunk
from swapmeet_serving.board import Board, Poster, build_board, poster_to, process_id
from swapmeet_serving.deployment import build_replicas
from swapmeet_serving.errors import EngineDead, Overloaded
from swapmeet_serving.inbox import Inbox, Stream
from swapmeet_serving.metrics import Snapshot
from swapmeet_serving.replica_settings import ReplicaSettings, Scaling

log = logging.getLogger("swapmeet.gateway")

SCALING = ("HEALTHY", "UPSCALING", "DOWNSCALING")
"""Ray's states of a deployment that gets replicas as it needs them."""
ATTEMPTS = 2
"""How often a call is sent when the replica it was sent to dies before it gave anything."""
PLAIN: dict[str, Any] = {"request_serialization": "pickle", "response_serialization": "pickle"}
"""Calls and errors are of importable classes: Ray need not look whether their code must be sent along."""
LATE_SECONDS = 5.0
"""How much later than the end of a call its last tokens may come."""
CLOSE_SECONDS = 10.0


@contextmanager
def _replica_errors() -> Iterator[None]:
    """Map what Ray raises on the way to a replica to errors of ours; the replica's own pass."""
    try:
        yield
    except (RayActorError, grpc.RpcError, ConnectionError) as error:
        raise _Gone("The engine that was answering is gone. Ask again.") from error
    except BackPressureError as error:
        raise Overloaded("All engines are busy, and as many requests wait as may. Try again later.") from error
    except DeploymentUnavailableError as error:
        raise EngineDead("No engine could be started. The server's log says why.") from error


class _Gone(EngineDead):
    """The replica's process ended, and the call with it."""


class ServeReplicas:
    """Engine replicas behind a Ray Serve handle.

    A call whose replica dies before anything was answered is sent once more, to another; after that its caller, who
    has read a part of another answer, is told.
    """

    def __init__(
        self, handle: DeploymentHandle[Any], board: DeploymentHandle[Board], here: Callable[[], Snapshot]
    ) -> None:
        self.handle = handle
        self._board = board
        self._here = here
        self._inbox = Inbox(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        self._following: set[asyncio.Task[None]] = set()  # the loop itself would forget them

    async def generate(self, call: Call) -> AsyncGenerator[Chunk, None]:
        """Stream a call's answers; leaving early cancels them in the replica."""
        for attempt in range(1, ATTEMPTS + 1):
            begun = False
            try:
                with _replica_errors():
                    async with aclosing(self._stream(call)) as chunks:
                        async for chunk in chunks:
                            begun = True
                            yield chunk
                return
            except _Gone:
                if begun or attempt == ATTEMPTS:
                    raise

    async def _stream(self, call: Call) -> AsyncGenerator[Chunk, None]:
        """One attempt: the chunks come to the inbox, and Ray tells how the call ended."""
        left = call.n
        async with self._inbox.stream() as stream:
            response: Any = self.handle.options(stream=True, **PLAIN).send.remote(call, stream.address)
            following = asyncio.create_task(_follow(response, stream))
            self._following.add(following)
            following.add_done_callback(self._following.discard)
            try:
                while left:
                    for chunk in await stream.take():
                        yield chunk
                        left -= chunk.finish_reason is not None
            finally:
                if left:
                    await _cancel(response, following)

    async def answer(self, call: Call) -> tuple[Chunk, ...]:
        """The whole answers, each as one chunk; leaving early cancels them in the replica."""
        for attempt in range(1, ATTEMPTS + 1):
            response: Any = self.handle.options(**PLAIN).answer.remote(call)
            try:
                with _replica_errors():
                    whole: tuple[Chunk, ...] = await response
                return whole
            except asyncio.CancelledError:
                response.cancel()
                raise
            except _Gone:
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def describe(self) -> dict[str, Any]:
        """Ask one replica what it holds."""
        with _replica_errors():
            description = await self.handle.describe.remote()
        return dict(description)

    async def measurements(self) -> list[Snapshot]:
        """What stands on the board, and what this gateway measured up to now."""
        posted: list[Snapshot] = await self._board.read.remote()
        here = self._here()
        return [here, *(each for each in posted if (each.role, each.id) != (here.role, here.id))]

    async def close(self) -> None:
        """Let go of Ray before it ends: handles report to it, and would start another."""
        for each in (self.handle, self._board):
            await each.shutdown_async()  # type: ignore[no-untyped-call]
        self._inbox.close()

    async def state(self) -> str:
        """`ready`, or `asleep` where the first call starts a replica; asks Ray Serve, so that it wakes nobody.

        Raises:
            EngineDead: no replica runs, and none is to come.
        """
        status: Any = await run_in_threadpool(serve.status)
        deployment = status.applications[self.handle.app_name].deployments[self.handle.deployment_name]
        if deployment.replica_states.get("RUNNING"):
            return "ready"
        if deployment.status in SCALING:
            return "asleep"
        raise EngineDead(f"No engine runs ({deployment.status.value}): {deployment.message}")


async def _follow(response: Any, stream: Stream) -> None:
    """Tell a stream when its call failed; if it ended well, what it sent is here or about to come."""
    try:
        async for _ in response:
            pass
    except Exception as error:
        stream.fail(error)
    except asyncio.CancelledError:  # by Ray, which ends; or by `_cancel`, when nobody reads the stream any more
        stream.fail(_Gone("The call was cancelled on its way to the engine. Ask again."))
        raise
    else:
        lost = _Gone("A part of the answer was lost on its way from the engine. Ask again.")
        asyncio.get_running_loop().call_later(LATE_SECONDS, stream.fail, lost)


async def _cancel(response: Any, following: asyncio.Task[None]) -> None:
    """End a call, wherever it is."""
    following.cancel()
    # Ray forgets to cancel what a replica has just accepted, unless it is being read.
    reading = asyncio.ensure_future(response.__anext__())
    await asyncio.sleep(0)
    response.cancel()
    await asyncio.gather(following, reading, return_exceptions=True)


@contextmanager
def gateway_app(
    settings: Settings,
    base: Base,
    replicas: DeploymentHandle[Any],
    board: DeploymentHandle[Board],
    loop: asyncio.AbstractEventLoop,
) -> Iterator[FastAPI]:
    """The gateway's app in the one process that answers requests, all on one loop."""
    meter = HttpMeter()
    log_to(settings.request_log)
    served = ServeReplicas(replicas, board, lambda: _measured("up", meter))
    try:
        yield assemble(settings, base.fingerprint, served, meter, background=at_work)
    finally:
        closing = asyncio.run_coroutine_threadsafe(served.close(), loop)
        try:
            closing.result(CLOSE_SECONDS)
        except TimeoutError:
            log.warning("the handles of Ray Serve were not closed within %s s", CLOSE_SECONDS)


@serve.deployment(ray_actor_options={"num_cpus": 0})
@serve.ingress()
class Gateway:
    """The gateway under Ray Serve's HTTP proxy, one of several; the app is built inside the replica."""

    def __init__(
        self, settings: Settings, base: Base, replicas: DeploymentHandle[Any], board: DeploymentHandle[Board]
    ) -> None:
        meter = HttpMeter()
        self.poster = Poster("gateway", process_id(), meter.families, poster_to(board))
        log_to(_own_log(settings.request_log))
        served = ServeReplicas(replicas, board, self.poster.snapshot)
        self.app = assemble(settings, base.fingerprint, served, meter, proxied=True, background=at_work)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve after the constructor."""
        return self.app


def build_engines(settings: Settings, base: Base, board: Application | None = None) -> Application:
    """The engine replicas, and the board for what they measure."""
    return build_replicas(
        ReplicaSettings(
            base=base.path,
            fingerprint=base.fingerprint,
            registry=settings.registry_url,
            cache=settings.folder / "cache" / "adapters",
            cache_bytes=settings.adapter_disk,
            device=_device(settings),
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            adapter_bytes=settings.adapter_memory,
            host_bytes=settings.adapter_host_memory,
            kv_bytes=settings.kv_memory,
            threads=settings.threads,
            exact=settings.exact,
            tool_format=settings.tool_format,
            step_timeout=settings.step_timeout,
            scaling=Scaling(
                min_replicas=settings.min_replicas,
                max_replicas=settings.max_replicas,
                target_requests=settings.target_requests,
                upscale_delay=settings.upscale_delay,
                downscale_delay=settings.downscale_delay,
                drain=settings.drain,
                max_queued=settings.max_queue,
            ),
        ),
        board or build_board(),
    )


def build(settings: Settings, base: Base) -> Application:
    """The whole application: gateways, engine replicas, and the board for what both measure."""
    gateway: Any = Gateway
    board = build_board()
    # More than the engines take, so that they answer `overloaded` instead of calls piling up unseen.
    room = settings.max_replicas * (settings.max_batch + 4 * settings.max_queue)
    options = gateway.options(max_ongoing_requests=room, graceful_shutdown_timeout_s=settings.drain)
    application: Application = options.bind(settings, base, build_engines(settings, base, board), board)
    return application


def application(args: dict[str, Any]) -> Application:
    """What a Serve config file names as `import_path`; `args` are settings, by name.

    The first start makes the operator's key in `HOME/admin.key`, as `swapmeet up` does.
    """
    settings = load_settings(**args)
    prepare(settings)
    return build(settings, BaseLibrary(settings.folder).find(settings.base))


def _measured(name: str, meter: HttpMeter) -> Snapshot:
    return Snapshot("gateway", name, tuple(meter.families()))


def _own_log(path: Path) -> Path:
    """The log of this gateway: processes can not rotate one file together, so the second's is `requests-1.jsonl`."""
    rank = serve.get_replica_context().rank.rank
    return path.with_stem(f"{path.stem}-{rank}") if rank else path


def _device(settings: Settings) -> str:
    """A GPU where the settings or the cluster have one."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    wanted = settings.device == "cuda" or (settings.device == "auto" and resources.get("GPU", 0) >= 1)
    return "cuda" if wanted else "cpu"
