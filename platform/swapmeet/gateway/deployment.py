"""The gateway as a Ray Serve deployment in front of the engine replicas."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from swapmeet.gateway.app import create_app
from swapmeet.gateway.http_meter import HttpMeter
from swapmeet.gateway.request_trace import log_to
from swapmeet.gateway.services import Services
from swapmeet.keys import Keys
from swapmeet.preparation import prepare
from swapmeet.settings import Settings, load_settings
from swapmeet_registry import Registry
from swapmeet_registry.bases import Base, BaseLibrary
from swapmeet_serving import Call, Chunk
from swapmeet_serving.board import Board, Poster, build_board, poster_to, process_id
from swapmeet_serving.deployment import build_replicas
from swapmeet_serving.errors import EngineDead
from swapmeet_serving.metrics import Snapshot
from swapmeet_serving.replica import ReplicaSettings


@contextmanager
def _replica_errors() -> Iterator[None]:
    """Map the death of a replica to an error of ours."""
    try:
        yield
    except RayActorError as error:
        raise EngineDead("The engine that was answering is gone. Ask again.") from error


class ServeReplicas:
    """Engine replicas behind a Ray Serve handle."""

    def __init__(
        self, handle: DeploymentHandle[Any], board: DeploymentHandle[Board], here: Callable[[], Snapshot]
    ) -> None:
        self.handle = handle
        self._board = board
        self._here = here

    async def generate(self, call: Call) -> AsyncGenerator[Chunk, None]:
        """Stream a call's answers; leaving early cancels them in the replica."""
        stream: Any = self.handle.options(stream=True).generate.remote(call)
        try:
            with _replica_errors():
                async for chunk in stream:
                    yield chunk
        finally:
            stream.cancel()

    async def answer(self, call: Call) -> tuple[Chunk, ...]:
        """The whole answers, each as one chunk; leaving early cancels them in the replica."""
        response: Any = self.handle.answer.remote(call)
        try:
            with _replica_errors():
                whole: tuple[Chunk, ...] = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        return whole

    async def describe(self) -> dict[str, Any]:
        """Ask one replica what it holds."""
        description = await self.handle.describe.remote()
        return dict(description)

    async def measurements(self) -> list[Snapshot]:
        """What stands on the board, and what this gateway measured up to now."""
        posted: list[Snapshot] = await self._board.read.remote()
        here = self._here()
        return [here, *(each for each in posted if (each.role, each.id) != (here.role, here.id))]


@serve.deployment(ray_actor_options={"num_cpus": 0})
@serve.ingress()
class Gateway:
    """Builds the FastAPI app inside the replica, where registry and database are reached."""

    def __init__(
        self, settings: Settings, base: Base, replicas: DeploymentHandle[Any], board: DeploymentHandle[Board]
    ) -> None:
        self.settings = settings
        self.meter = HttpMeter()
        self.poster = Poster("gateway", process_id(), self.meter.families, poster_to(board))
        registry, keys = Registry(settings.registry_url), Keys(settings.database_url)
        behind = ServeReplicas(replicas, board, self.poster.snapshot)
        self.services = Services(registry, keys, base.fingerprint, behind)
        log_to(_own_log(settings.request_log))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve after the constructor."""
        return create_app(self.services, self.meter, metrics_public=self.settings.metrics_public)


def build(settings: Settings, base: Base) -> Application:
    """The whole application: gateway, engine replicas, and the board for what both measure."""
    board = build_board()
    replicas = build_replicas(
        ReplicaSettings(
            base=base.path,
            fingerprint=base.fingerprint,
            registry=settings.registry_url,
            cache=settings.folder / "cache" / "adapters",
            device=_device(settings),
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            adapter_bytes=settings.adapter_memory,
            kv_bytes=settings.kv_memory,
            exact=settings.exact,
            tool_format=settings.tool_format,
        ),
        board,
    )
    gateway: Any = Gateway
    # More than the engine takes, so that it answers `overloaded` instead of calls piling up unseen.
    room = settings.max_batch + 4 * settings.max_queue
    application: Application = gateway.options(max_ongoing_requests=room).bind(settings, base, replicas, board)
    return application


def application(args: dict[str, Any]) -> Application:
    """What a Serve config file names as `import_path`; `args` are settings, by name.

    The first start makes the operator's key in `HOME/admin.key`, as `swapmeet up` does.
    """
    settings = load_settings(**args)
    prepare(settings)
    return build(settings, BaseLibrary(settings.folder).find(settings.base))


def _own_log(path: Path) -> Path:
    """The log of this gateway: processes can not rotate one file together, so the second's is `requests-1.jsonl`."""
    rank = serve.get_replica_context().rank.rank
    return path.with_stem(f"{path.stem}-{rank}") if rank else path


def _device(settings: Settings) -> str:
    """A GPU where the settings or the cluster have one."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    wanted = settings.device == "cuda" or (settings.device == "auto" and resources.get("GPU", 0) >= 1)
    return "cuda" if wanted else "cpu"
