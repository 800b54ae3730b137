"""What owners do with their models: delete them, and let other tenants use them. OpenAI's shapes."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from swapmeet.adapter_withdrawals import delete_all, withdraw
from swapmeet.database.tables import PermissionRow
from swapmeet.errors import RequestRefused
from swapmeet.fine_tuning.wire import seconds
from swapmeet.gateway.authority import Caller, may
from swapmeet.gateway.marketplace import Noting
from swapmeet.gateway.pages import page
from swapmeet.gateway.services import Services, services
from swapmeet.permissions import Permissions
from swapmeet_registry import InvalidName, NotFound, Reference, Registry

router = APIRouter(prefix="/v1", tags=["models"])
PERMISSIONS = "/fine_tuning/checkpoints/{model:path}/permissions"
NAME = r"^[^\x00-\x1f\x7f]*$"
DELETED = "Deleted by its owner."

Backend = Annotated[Services, Depends(services)]
Publisher = Annotated[Caller, Depends(may("publish"))]
Administrator = Annotated[Caller, Depends(may("admin"))]
Reader = Annotated[Caller, Depends(may("read"))]
Tenant = Annotated[str, Field(min_length=1, max_length=64, pattern=NAME)]


class Grant(BaseModel):
    """Which tenants are to use a model from now on."""

    model_config = ConfigDict(extra="forbid")

    project_ids: Annotated[list[Tenant], Field(min_length=1, max_length=1000)]


def install(app: FastAPI, permissions: Permissions) -> None:
    """Add the routes to an app, over these permissions and the app's services."""
    app.state.permissions = permissions
    app.include_router(router)


async def permissions_of(request: Request) -> Permissions:
    """The app's permissions, as a FastAPI dependency."""
    found = request.app.state.permissions
    assert isinstance(found, Permissions)
    return found


Granted = Annotated[Permissions, Depends(permissions_of)]


@router.delete("/models/{model:path}")
async def delete(model: str, backend: Backend, changed: Noting, caller: Publisher) -> dict[str, Any]:
    """Delete an adapter with all its versions, or the one version that is named, for good.

    Nobody finds it any more, by its digests neither; servers drop it within seconds, and its files go with the next
    collection. Its name and numbers stay taken. To withdraw a version from those who did not pin it, yank it instead.
    """
    if model == backend.base.name:
        raise RequestRefused("The base itself can not be deleted: it is what the server hosts.", "model")
    reference = await _own(model, backend, caller, _require_left)
    await run_in_threadpool(_delete, backend, changed, reference, caller)
    return {"id": model, "object": "model", "deleted": True}


@router.get(PERMISSIONS)
async def list_(
    model: str,
    backend: Backend,
    granted: Granted,
    caller: Reader,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 10,
    order: Literal["ascending", "descending"] = "descending",
    project_id: Annotated[str | None, Query(max_length=64, pattern=NAME)] = None,
) -> dict[str, Any]:
    """Which other tenants may use a model."""
    await _own(model, backend, caller)
    newest_first = order == "descending"
    rows, more = await run_in_threadpool(granted.page, model, after, limit, project_id, newest_first)
    return page([_permission(row) for row in rows], more)


@router.post(PERMISSIONS)
async def create(model: str, body: Grant, backend: Backend, granted: Granted, caller: Administrator) -> dict[str, Any]:
    """Let other tenants use a model, under just this name."""
    await _own(model, backend, caller)
    rows = await run_in_threadpool(granted.grant, model, body.project_ids, caller)
    return page([_permission(row) for row in rows], False)


@router.delete(PERMISSIONS + "/{permission}")
async def revoke(
    model: str, permission: str, backend: Backend, granted: Granted, caller: Administrator
) -> dict[str, Any]:
    """Take a permission back."""
    await _own(model, backend, caller, lambda *_: None)
    await run_in_threadpool(granted.revoke, model, permission, caller)
    return {"id": permission, "object": "checkpoint.permission", "deleted": True}


def _require_usable(registry: Registry, reference: Reference) -> None:
    registry.resolve(str(reference))


def _require_left(registry: Registry, reference: Reference) -> None:
    """Nothing, if there is anything to delete: also what was yanked or recalled, whose bytes are still there."""
    found = registry.show(str(reference)).versions if _whole(reference) else (registry.find(str(reference)),)
    if all(version.deleted is not None for version in found):
        raise NotFound


async def _own(
    model: str,
    backend: Services,
    caller: Caller,
    require: Callable[[Registry, Reference], None] = _require_usable,
) -> Reference:
    """A model of the caller's; another's does not exist, and neither does one that lacks what is required."""
    try:
        reference = Reference.parse(model)
        if reference.name.tenant != caller.tenant and not caller.operator:
            raise NotFound
        await run_in_threadpool(require, backend.registry, reference)
    except (InvalidName, NotFound):
        raise NotFound(f"There is no model {model[:200]!r} of yours. List the models to see their names.") from None
    return reference


def _delete(backend: Services, changed: Noting, reference: Reference, caller: Caller) -> None:
    """Delete, and note how that ended: the registry is elsewhere than the audit log."""
    audit, database = backend.tenancy.audit, backend.tenancy.database
    with audit.noting(caller, "model.delete", str(reference), tenant=reference.name.tenant):
        try:
            if _whole(reference):
                delete_all(backend.registry, database, reference.name, DELETED)
            else:
                withdraw(backend.registry, database, str(reference), "deleted", DELETED)
        finally:  # some of it may have been done
            changed(reference.name)


def _whole(reference: Reference) -> bool:
    """Whether it names an adapter, rather than one version."""
    return reference.version is None and reference.digest is None and reference.alias is None


def _permission(row: PermissionRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "checkpoint.permission",
        "created_at": seconds(row.created_at),
        "project_id": row.project,
    }
