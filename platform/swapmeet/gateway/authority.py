"""Who calls, and what he may: the one point that every route asks."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from swapmeet.gateway.errors import InvalidApiKey, PermissionDenied
from swapmeet.gateway.services import services_of

OPERATOR = "admin"
"""The tenant whose key with the scope `admin` is the operator's."""
SCOPES = frozenset({"infer", "read", "train", "publish", "admin", "metrics"})
ALLOWED = {"admin": SCOPES, "metrics": frozenset({"metrics"})}
"""What keys made with one scope may; all others may call models and look."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose key a request came with, and what that key may do."""

    tenant: str
    key: str
    scopes: frozenset[str]

    @property
    def operator(self) -> bool:
        """Whether this is who runs the platform."""
        return self.tenant == OPERATOR and "admin" in self.scopes


def may(scope: str) -> Callable[[Request], Awaitable[Caller]]:
    """A FastAPI dependency that lets a request pass only with a key of this scope, and gives its caller."""

    async def check(request: Request) -> Caller:
        caller = await _caller(request)
        if scope not in caller.scopes:
            raise PermissionDenied(f"This key has not the scope {scope!r}. Use one that has, or ask for one.")
        return caller

    return check


async def _caller(request: Request) -> Caller:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    holder = await run_in_threadpool(services_of(request).keys.holder_of, key.strip())
    if holder is None or scheme.lower() != "bearer":
        raise InvalidApiKey
    return Caller(holder.tenant, "", ALLOWED.get(holder.scope, frozenset({"infer", "read"})))
