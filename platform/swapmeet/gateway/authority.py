"""Who calls, and what the caller may do: the one place where that is decided."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from swapmeet.gateway.errors import InvalidApiKey, PermissionDenied
from swapmeet.gateway.services import services_of

SCOPES = {
    "admin": frozenset({"infer", "read", "train", "publish", "admin", "metrics"}),
    "train": frozenset({"infer", "read", "train"}),
    "inference": frozenset({"infer", "read"}),
}
"""What keys of today's kinds may do."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose key it is, which one, and what it may do."""

    tenant: str
    key: str
    scopes: frozenset[str]

    @property
    def operator(self) -> bool:
        """Whether it runs this platform."""
        return self.tenant == "admin" and "admin" in self.scopes


def may(scope: str) -> Callable[[Request], Awaitable[Caller]]:
    """A dependency that gives the caller, or answers 401 or 403."""

    async def allowed(request: Request) -> Caller:
        caller = await _caller(request)
        if scope not in caller.scopes:
            raise PermissionDenied(f"This key may not {scope}. Use one of the scope {scope}.")
        return caller

    return allowed


async def _caller(request: Request) -> Caller:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    keys, key = services_of(request).keys, key.strip()
    holder = keys.known_holder_of(key)
    if holder is None and scheme.lower() == "bearer":
        holder = await run_in_threadpool(keys.holder_of, key)
    if holder is None or scheme.lower() != "bearer":
        raise InvalidApiKey
    return Caller(holder.tenant, "", SCOPES.get(holder.scope, frozenset({holder.scope})))
