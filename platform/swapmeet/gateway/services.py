"""What the gateway's routes stand on, so that the app can be built with any of them replaced."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import Request

from swapmeet.gateway.errors import InvalidApiKey
from swapmeet.keys import Keys
from swapmeet_registry import Registry
from swapmeet_registry.fingerprint import Fingerprint
from swapmeet_serving import Call, Chunk


class Replicas(Protocol):
    """The engine replicas behind the gateway."""

    def generate(self, call: Call) -> AsyncIterator[Chunk]:
        """Stream a call's answers; errors arrive as the replica raised them."""

    async def answer(self, call: Call) -> tuple[Chunk, ...]:
        """The whole answers, each as one chunk."""

    async def describe(self) -> dict[str, Any]:
        """What a replica holds: base, context length, resident adapters."""


@dataclass(frozen=True, slots=True)
class Services:
    """Registry, keys, the hosted base and the replicas."""

    registry: Registry
    keys: Keys
    base: Fingerprint
    replicas: Replicas


def services(request: Request) -> Services:
    """The app's services, as a FastAPI dependency."""
    found = request.app.state.services
    assert isinstance(found, Services)
    return found


def authorize(request: Request) -> None:
    """Let a request pass only with a known key."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or services(request).keys.scope_of(key.strip()) is None:
        raise InvalidApiKey
