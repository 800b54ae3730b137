"""The gateway as a Ray Serve deployment in front of the engine replicas."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from swapmeet.background import at_work
from swapmeet.gateway.assembly import assemble
from swapmeet.gateway.http_meter import HttpMeter
from swapmeet.gateway.replicas import ServeReplicas
from swapmeet.gateway.request_trace import log_to
from swapmeet.preparation import prepare
from swapmeet.settings import Settings, load_settings
from swapmeet_registry.bases import Base, BaseLibrary
from swapmeet_serving.board import Board, Poster, build_board, poster_to, process_id
from swapmeet_serving.deployment import build_replicas
from swapmeet_serving.metrics import Snapshot
from swapmeet_serving.replica_settings import ReplicaSettings, Scaling

log = logging.getLogger("swapmeet.gateway")

CLOSE_SECONDS = 10.0


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
            trust=settings.trust,
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
