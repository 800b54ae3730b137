"""Tenants, keys, usage and the audit log over HTTP.

The operator sees and changes all of it; a tenant's `admin` keys make and revoke keys of their own tenant. What is
another tenant's is answered as if it did not exist.
"""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import StreamingResponse

from swapmeet.database.tables.base import now
from swapmeet.errors import Forbidden, RequestRefused
from swapmeet.gateway.administration_wire import (
    NewKey,
    NewTenant,
    Rotation,
    TenantChange,
    audit_object,
    issued_object,
    key_object,
    tenant_object,
    usage_csv,
)
from swapmeet.gateway.authority import Caller, may, operator
from swapmeet.gateway.bodies import begun
from swapmeet.gateway.pages import page
from swapmeet.gateway.services import Services, services
from swapmeet.tenancy import Tenancy
from swapmeet.tenancy.tenants import no_tenant
from swapmeet.tenancy.usage import By

router = APIRouter(prefix="/v1")
REPORTED = timedelta(days=30)
SECRET = {"cache-control": "no-store"}


async def tenancy(backend: Annotated[Services, Depends(services)]) -> Tenancy:
    """The app's tenancy, as a FastAPI dependency."""
    return backend.tenancy


Books = Annotated[Tenancy, Depends(tenancy)]
Operator = Annotated[Caller, Depends(operator)]
Admin = Annotated[Caller, Depends(may("admin"))]
Reader = Annotated[Caller, Depends(may("read"))]
Limit = Annotated[int, Query(ge=1, le=1000)]
After = Annotated[str | None, Query(max_length=64, pattern="^[!-~]*$")]


@router.post("/tenants")
def create_tenant(body: NewTenant, books: Books, caller: Operator) -> dict[str, Any]:
    """Make a tenant; the same again gives the one that is there."""
    return tenant_object(books.tenants.create(body.name, body.settings(), caller))


@router.get("/tenants")
def list_tenants(books: Books, caller: Reader, after: After = None, limit: Limit = 100) -> dict[str, Any]:
    """The tenants by name: all for the operator, and else the caller's own."""
    if not caller.operator:
        own = [] if after and after >= caller.tenant else [books.tenants.get(caller.tenant)]
        return page([tenant_object(row) for row in own], False)
    rows, more = books.tenants.page(after, limit)
    return page([tenant_object(row) for row in rows], more)


@router.get("/tenants/{name}")
def show_tenant(name: str, books: Books, caller: Reader) -> dict[str, Any]:
    """A tenant."""
    _require_own(caller, name)
    return tenant_object(books.tenants.get(name))


@router.post("/tenants/{name}")
def change_tenant(name: str, body: TenantChange, books: Books, caller: Operator) -> dict[str, Any]:
    """Change a tenant's share or limits, suspend it, or let it go on."""
    return tenant_object(books.tenants.change(name, body.settings(), caller, suspended=body.suspended))


@router.post("/keys")
def create_key(body: NewKey, books: Books, caller: Admin, response: Response) -> dict[str, Any]:
    """Make a key; `value` is shown here and never again. Whoever repeats this gets another key."""
    tenant = body.tenant or caller.tenant
    _require_own(caller, tenant)
    if "metrics" in body.scopes and not caller.operator:
        raise Forbidden("Only the operator gives the scope 'metrics', which shows every tenant's adapters.")
    expires_at = now() + timedelta(seconds=body.expires_in) if body.expires_in else None
    issued = books.keys.create(tenant, body.scopes, name=body.name, expires_at=expires_at, by=caller)
    response.headers.update(SECRET)
    return issued_object(issued)


@router.get("/keys")
def list_keys(
    books: Books, caller: Admin, tenant: str | None = None, after: After = None, limit: Limit = 100
) -> dict[str, Any]:
    """Keys, newest first: of one tenant, or for the operator of all."""
    rows, more = books.keys.page(_whose(caller, tenant, books), after, limit)
    return page([key_object(row) for row in rows], more)


@router.get("/keys/{key}")
def show_key(key: str, books: Books, caller: Admin) -> dict[str, Any]:
    """A key, by its id."""
    return key_object(books.keys.get(_own(caller), key))


@router.delete("/keys/{key}")
def revoke_key(key: str, books: Books, caller: Admin) -> dict[str, Any]:
    """End a key, within a second everywhere. To do so again changes nothing."""
    row = books.keys.revoke(_own(caller), key, caller)
    return {"id": row.id, "object": "key.deleted", "deleted": True}


@router.post("/keys/{key}/rotate")
def rotate_key(
    key: str, books: Books, caller: Admin, response: Response, body: Rotation | None = None
) -> dict[str, Any]:
    """Make a key with the same rights, and have the old one end after a period of grace."""
    grace = timedelta(seconds=(body or Rotation()).grace)
    issued = books.keys.rotate(_own(caller), key, grace, caller)
    response.headers.update(SECRET)
    return issued_object(issued)


@router.get("/usage")
def usage(
    books: Books,
    caller: Reader,
    start: datetime | None = None,
    end: datetime | None = None,
    by: Annotated[list[By] | None, Query(max_length=4)] = None,
    tenant: str | None = None,
    owned: bool = False,
    format: Literal["json", "csv"] = "json",  # noqa: A002 - the parameter's name
) -> Any:
    """What was used from `start` until before `end`, the last 30 days where nothing is given.

    With `owned`, what everybody used of a tenant's adapters, without saying who.
    """
    ending = _utc(end, "end") if end else now()
    starting = _utc(start, "start") if start else max(ending, _EARLIEST + REPORTED) - REPORTED
    if starting > ending:
        raise RequestRefused("start is after end. Give a moment that is before it.", "start")
    whose, groups = _whose(caller, tenant, books), list(dict.fromkeys(by or []))
    if owned and not caller.operator and {"key", "tenant"} & set(groups):
        raise RequestRefused("Who used your adapters is not told. Ask by adapter or by day.", "by")
    rows = books.usage.report(starting, ending, groups, **{"owner" if owned else "tenant": whose})
    if format == "csv":
        headers = {"content-disposition": 'attachment; filename="usage.csv"'}
        return Response(usage_csv(rows, groups), media_type="text/csv; charset=utf-8", headers=headers)
    period = {"start": int(starting.timestamp()), "end": int(ending.timestamp())}
    return page([{"object": "usage", **row} for row in rows], False) | period


@router.get("/audit")
def audit(
    books: Books,
    caller: Admin,
    tenant: str | None = None,
    after: Annotated[str | None, Query(pattern="^audit-[0-9]{1,18}$")] = None,
    limit: Limit = 100,
    action: After = None,
) -> dict[str, Any]:
    """Who did what to what: newest first, of one tenant, or for the operator of all."""
    older = int(after.removeprefix("audit-")) if after else None
    rows, more = books.audit.page(_whose(caller, tenant, books), older, limit, action)
    return page([audit_object(row) for row in rows], more)


@router.get("/audit/export", response_class=StreamingResponse)
def export_audit(books: Books, caller: Admin, tenant: str | None = None) -> StreamingResponse:
    """A tenant's whole log, the caller's own unless another is named, as lines of JSON for `swapmeet audit verify`."""
    whose = _whose(caller, tenant, books) or caller.tenant
    headers = {"content-disposition": f'attachment; filename="audit-{whose}.jsonl"'}
    return StreamingResponse(begun(books.audit.export(whose)), media_type="application/jsonl", headers=headers)


_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = datetime(9000, 1, 1, tzinfo=UTC)


def _utc(moment: datetime, param: str) -> datetime:
    """A moment in UTC, which it is in where it names no zone."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if not _EARLIEST <= aware <= _LATEST:
        raise RequestRefused("Give seconds since 1970, or a date such as 2026-11-22.", param)
    return aware.astimezone(UTC)


def _own(caller: Caller) -> str | None:
    """Whose things a caller may name: its own tenant's, or anybody's."""
    return None if caller.operator else caller.tenant


def _require_own(caller: Caller, tenant: str) -> None:
    if not caller.operator and tenant != caller.tenant:
        raise no_tenant(tenant)


def _whose(caller: Caller, tenant: str | None, books: Tenancy) -> str | None:
    """Whose things to list: those of the tenant that was named, or all that the caller may see."""
    if tenant is None:
        return _own(caller)
    _require_own(caller, tenant)
    return books.tenants.get(tenant).name
