"""What the gateway's routes stand on, so that the app can be built with any of them replaced."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastapi import Request

from swapmeet.gateway.admission import Admission
from swapmeet.gateway.errors import InvalidApiKey
from swapmeet.keys import Keys
from swapmeet_registry import Registry
from swapmeet_registry.fingerprint import Fingerprint
from swapmeet_serving import Call, Chunk

CALLER_REQUESTS = 256


class Replicas(Protocol):
    """The engine replicas behind the gateway."""

    def generate(self, call: Call) -> AsyncIterator[Chunk]:
        """Stream one answer; errors arrive as the replica raised them."""

    async def answer(self, call: Call) -> Chunk:
        """The whole answer as one chunk."""

    async def describe(self) -> dict[str, Any]:
        """What a replica holds: base, context length, resident adapters."""

    async def state(self) -> str:
        """`ready` or `asleep`; raises where nobody could answer."""


@dataclass(frozen=True, slots=True)
class Services:
    """Registry, keys, the hosted base, the replicas, and who may ask how much at once."""

    registry: Registry
    keys: Keys
    base: Fingerprint
    replicas: Replicas
    admission: Admission = field(default_factory=lambda: Admission(CALLER_REQUESTS))


def services(request: Request) -> Services:
    """The app's services, as a FastAPI dependency."""
    found = request.app.state.services
    assert isinstance(found, Services)
    return found


async def admit(request: Request) -> AsyncIterator[None]:
    """Count a request of whoever sends it, until its answer has gone out."""
    with services(request).admission.admit(request.headers.get("authorization", "")):
        yield


def authorize(request: Request) -> None:
    """Let a request pass only with a known key."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or services(request).keys.scope_of(key.strip()) is None:
        raise InvalidApiKey
