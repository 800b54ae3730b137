"""The gateway as a Ray Serve deployment in front of the engine replicas."""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from swapmeet_serving.deployment import ReplicaSettings, build_replicas

from swapmeet.gateway.app import create_app
from swapmeet.gateway.services import Services
from swapmeet.keys import Keys
from swapmeet.settings import Settings
from swapmeet_registry import Registry
from swapmeet_registry.bases import Base
from swapmeet_serving import Call, Chunk


class ServeReplicas:
    """Engine replicas behind a Ray Serve handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self.handle = handle

    async def generate(self, call: Call) -> AsyncIterator[Chunk]:
        """Stream one answer; leaving early cancels it in the replica."""
        stream = self.handle.options(stream=True).generate.remote(call)
        try:
            async for chunk in stream:
                yield chunk
        finally:
            stream.cancel()

    async def describe(self) -> dict[str, Any]:
        """Ask one replica what it holds."""
        description = await self.handle.describe.remote()
        return dict(description)


@serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1024)
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
            device=settings.device,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            adapter_bytes=settings.adapter_memory,
            kv_bytes=settings.kv_memory,
        )
    )
    return Gateway.bind(settings, base, replicas)
