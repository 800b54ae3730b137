"""What the gateway's routes stand on, so that the app can be built with any of them replaced."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastapi import Request

from swapmeet.adapter_access import AdapterAccess
from swapmeet.gateway.admission import Admission
from swapmeet.gateway.unknown_models import UnknownModels
from swapmeet.tenancy import Tenancy
from swapmeet_registry import Registry
from swapmeet_registry.fingerprint import Fingerprint
from swapmeet_serving import Call, Chunk
from swapmeet_serving.metrics import Snapshot

CALLER_REQUESTS = 256


class Replicas(Protocol):
    """The engine replicas behind the gateway."""

    def generate(self, call: Call) -> AsyncGenerator[Chunk, None]:
        """Stream a call's answers; errors arrive as the replica raised them."""

    async def answer(self, call: Call) -> tuple[Chunk, ...]:
        """The whole answers, each as one chunk."""

    async def describe(self) -> dict[str, Any]:
        """What a replica holds: base, context length, resident adapters."""

    async def measurements(self) -> list[Snapshot]:
        """What every replica measured, and every other gateway."""

    async def state(self) -> str:
        """`ready` or `asleep`; raises where nobody could answer."""


@dataclass(frozen=True, slots=True)
class Services:
    """Registry, tenants, the hosted base, the replicas, who may ask how much at once, and names just not found."""

    registry: Registry
    tenancy: Tenancy
    base: Fingerprint
    replicas: Replicas
    admission: Admission = field(default_factory=lambda: Admission(CALLER_REQUESTS))
    unknown: UnknownModels = field(default_factory=UnknownModels)

    access: AdapterAccess = field(init=False)
    """Who may read or change which adapter."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "access", AdapterAccess(self.registry, self.tenancy.database))


async def services(request: Request) -> Services:
    """The app's services, as a FastAPI dependency; FastAPI would call a plain function on another thread."""
    return services_of(request)


def services_of(request: Request) -> Services:
    """The app's services."""
    found = request.app.state.services
    assert isinstance(found, Services)
    return found
