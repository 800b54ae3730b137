"""The gateway as a Ray Serve deployment in front of the engine replicas."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from swapmeet.gateway.app import create_app
from swapmeet.gateway.services import Services
from swapmeet.keys import Keys
from swapmeet.preparation import prepare
from swapmeet.settings import Settings, load_settings
from swapmeet_registry import Registry
from swapmeet_registry.bases import Base, BaseLibrary
from swapmeet_serving import Call, Chunk
from swapmeet_serving.deployment import ReplicaSettings, build_replicas
from swapmeet_serving.errors import EngineDead


@contextmanager
def _replica_errors() -> Iterator[None]:
    """Map the death of a replica to an error of ours."""
    try:
        yield
    except RayActorError as error:
        raise EngineDead("The engine that was answering is gone. Ask again.") from error


class ServeReplicas:
    """Engine replicas behind a Ray Serve handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self.handle = handle

    async def generate(self, call: Call) -> AsyncIterator[Chunk]:
        """Stream one answer; leaving early cancels it in the replica."""
        stream: Any = self.handle.options(stream=True).generate.remote(call)
        try:
            with _replica_errors():
                async for chunk in stream:
                    yield chunk
        finally:
            stream.cancel()

    async def answer(self, call: Call) -> Chunk:
        """The whole answer as one chunk."""
        with _replica_errors():
            whole: Chunk = await self.handle.answer.remote(call)
        return whole

    async def describe(self) -> dict[str, Any]:
        """Ask one replica what it holds."""
        description = await self.handle.describe.remote()
        return dict(description)


@serve.deployment(ray_actor_options={"num_cpus": 0})
@serve.ingress()
class Gateway:
    """Builds the FastAPI app inside the replica, where registry and database are reached."""

    def __init__(self, settings: Settings, base: Base, replicas: DeploymentHandle[Any]) -> None:
        registry, keys = Registry(settings.registry_url), Keys(settings.database_url)
        self.services = Services(registry, keys, base.fingerprint, ServeReplicas(replicas))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve after the constructor."""
        return create_app(self.services)


def build(settings: Settings, base: Base) -> Application:
    """The whole application: gateway and engine replicas."""
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
        )
    )
    gateway: Any = Gateway
    # More than the engine takes, so that it answers `overloaded` instead of calls piling up unseen.
    room = settings.max_batch + 4 * settings.max_queue
    application: Application = gateway.options(max_ongoing_requests=room).bind(settings, base, replicas)
    return application


def application(args: dict[str, Any]) -> Application:
    """What a Serve config file names as `import_path`; `args` are settings, by name.

    The first start makes the operator's key in `HOME/admin.key`, as `swapmeet up` does.
    """
    settings = load_settings(**args)
    prepare(settings)
    return build(settings, BaseLibrary(settings.folder).find(settings.base))


def _device(settings: Settings) -> str:
    """A GPU where the settings or the cluster have one."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    wanted = settings.device == "cuda" or (settings.device == "auto" and resources.get("GPU", 0) >= 1)
    return "cuda" if wanted else "cpu"
