"""The one place where it is decided whether a request may pass. A route without an authority is a failing test.

    @router.get("/v1/things", …)
    async def things(caller: Annotated[Caller, Depends(may("read"))]) -> …

`may` gives the caller, or answers 401 where there is no good key and 403 where the key lacks the scope. Whose things
a caller may see is the route's own matter: it looks for those of `caller.tenant`, and what is another's is 404.
"""

from dataclasses import replace
from functools import cache

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase

from swapmeet.errors import Forbidden
from swapmeet.gateway.errors import InvalidApiKey
from swapmeet.gateway.request_trace import request_id
from swapmeet.gateway.services import services_of
from swapmeet.tenancy.caller import Caller
from swapmeet.tenancy.keys import Keys
from swapmeet.tenancy.scopes import SCOPES

__all__ = ["Authority", "Caller", "may", "operator"]


class Authority(SecurityBase):
    """A FastAPI dependency that lets some callers pass, and gives them; the API's description says that it wants a key.

    Args:
        scopes: a key with any one of them may pass, and the operator's.
        operator: whether nobody else may pass.
    """

    def __init__(self, *scopes: str, operator: bool = False) -> None:
        if unknown := set(scopes) - set(SCOPES):
            raise ValueError(f"no such scopes: {', '.join(sorted(unknown))}")
        self.model = HTTPBearer(description="An API key: `swapmeet key create` makes one.")
        self.scheme_name = "key"
        self._scopes = scopes
        self._operator = operator

    async def __call__(self, request: Request) -> Caller:
        """Who asks.

        Raises:
            InvalidApiKey: no key, or not one of ours.
            Forbidden: it may not do this, or its tenant is suspended.
        """
        tenancy = services_of(request).tenancy
        caller = replace(await _caller(request, tenancy.keys), request=request_id())
        if caller.suspended:
            raise Forbidden(f"The tenant {caller.tenant!r} is suspended. Ask the operator of this server.")
        if not self._passes(caller):
            route = getattr(request.scope.get("route"), "path", "unknown")
            tenancy.audit.refused(caller, f"{request.method} {route}")
            raise Forbidden(self._words())
        return caller

    def _passes(self, caller: Caller) -> bool:
        return caller.operator or (not self._operator and any(map(caller.may, self._scopes)))

    def _words(self) -> str:
        if self._operator:
            return "Only the operator of this server may do this. Use the admin key."
        wanted = " or ".join(f"{scope!r}" for scope in self._scopes)
        return f"This key may not do this: it lacks the scope {wanted}. Use a key that has it."


@cache
def may(*scopes: str) -> Authority:
    """Let pass whoever has one of the scopes; the operator has all."""
    return Authority(*scopes)


operator = Authority(operator=True)
"""Let only the operator pass."""


async def _caller(request: Request, keys: Keys) -> Caller:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise InvalidApiKey
    key = key.strip()
    # Most requests are spared a thread and a query.
    caller = keys.known_caller(key) or await run_in_threadpool(keys.caller_of, key)
    if caller is None:
        raise InvalidApiKey
    return caller
