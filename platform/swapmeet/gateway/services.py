"""What the gateway's routes stand on, so that the app can be built with any of them replaced."""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool

from swapmeet.gateway.admission import Admission
from swapmeet.gateway.errors import InvalidApiKey, PermissionDenied
from swapmeet.gateway.unknown_models import UnknownModels
from swapmeet.keys import Holder, Keys
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
    """Registry, keys, the hosted base, the replicas, who may ask how much at once, and names just not found."""

    registry: Registry
    keys: Keys
    base: Fingerprint
    replicas: Replicas
    admission: Admission = field(default_factory=lambda: Admission(CALLER_REQUESTS))
    unknown: UnknownModels = field(default_factory=UnknownModels)


async def services(request: Request) -> Services:
    """The app's services, as a FastAPI dependency; FastAPI would call a plain function on another thread."""
    return services_of(request)


def services_of(request: Request) -> Services:
    """The app's services."""
    found = request.app.state.services
    assert isinstance(found, Services)
    return found


async def authorize(request: Request) -> str:
    """Let a request pass only with a known key; gives its tenant."""
    return (await _holder(request)).tenant


async def admit(request: Request, tenant: Annotated[str, Depends(authorize)]) -> AsyncIterator[None]:
    """Count a request of a tenant's, until its answer has gone out."""
    with services_of(request).admission.admit(tenant):
        yield


async def authorize_operator(request: Request) -> None:
    """Let a request pass only with a key of the operator's, or one made for reading metrics."""
    if (await _holder(request)).scope not in ("admin", "metrics"):
        raise PermissionDenied("This key may not read metrics. Use the admin key, or one of the scope metrics.")


async def _holder(request: Request) -> Holder:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    keys, key = services_of(request).keys, key.strip()
    holder = keys.known_holder_of(key)  # most requests are spared a thread and a query
    if holder is None and scheme.lower() == "bearer":
        holder = await run_in_threadpool(keys.holder_of, key)
    if holder is None or scheme.lower() != "bearer":
        raise InvalidApiKey
    return holder
