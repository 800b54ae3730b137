"""`/v1/adapters`: the registry over HTTP, for whoever may read or change what (`swapmeet.adapter_access`)."""

import hashlib
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Header, Query

from swapmeet import adapter_reach, adapter_withdrawals
from swapmeet.adapter_publishes import Publishes
from swapmeet.gateway import adapter_files, adapter_provenance, adapter_uploads
from swapmeet.gateway.adapter_changes import changing
from swapmeet.gateway.adapter_route import ADAPTER, Backend, Name, Publisher, Reader, Ref
from swapmeet.gateway.adapter_wire import (
    AliasMove,
    Sharing,
    Withdrawal,
    adapter_object,
    described_object,
    server_object,
    summary_object,
    version_object,
)
from swapmeet.gateway.authority import Caller, may
from swapmeet.gateway.downloads import Count, Downloads
from swapmeet.gateway.marketplace import Advising, Noting
from swapmeet.gateway.pages import page
from swapmeet_registry import Reference
from swapmeet_registry.head import Withdrawal as How

router = APIRouter(prefix="/v1/adapters", tags=["adapters"])
WITHDRAWALS: dict[str, How] = {"yank": "yanked", "recall": "recalled", "delete": "deleted"}
NAME = r"^[a-z0-9][a-z0-9._/-]*$"

IdempotencyKey = Annotated[str | None, Header(max_length=255)]
Administrator = Annotated[Caller, Depends(may("admin"))]


def install(app: FastAPI, publishes: Publishes, downloaded: Count = lambda *_: None) -> None:
    """Add the routes to an app, over its services, what is being published, and what counts downloads."""
    app.state.publishes, app.state.downloads = publishes, Downloads(downloaded)
    for each in (adapter_provenance.router, router, adapter_files.router, adapter_uploads.router):
        app.include_router(each)


@router.get("")
def adapters(
    backend: Backend,
    caller: Reader,
    owner: Annotated[str | None, Query(max_length=63, pattern=NAME)] = None,
    after: Annotated[str | None, Query(max_length=130, pattern=NAME)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """What the caller may read, its own first and then by name: of all, or of one owner."""
    listings, more = backend.access.page(caller, owner, after, limit)
    return page([summary_object(listing) for listing in listings], more)


@router.get(ADAPTER)
def adapter(name: Name, backend: Backend, advising: Advising, caller: Reader, advice: bool = False) -> dict[str, Any]:
    """An adapter: versions, aliases, and who may read it; with `advice`, what stands out of the latest's weights."""
    listing = backend.access.listing(caller, name)
    told = adapter_object(listing, caller)
    if advice:
        latest = next((each for each in reversed(listing.versions) if each.usable), None)
        owner = caller.operator or caller.tenant == name.tenant
        told["advice"] = [] if latest is None else list(advising(latest, owner))
    return told


@router.get(ADAPTER + "/versions/{ref}")
def version(ref: Ref, name: Name, backend: Backend, caller: Reader) -> dict[str, Any]:
    """A version by its number, an alias or its digest, with its manifest."""
    found = backend.access.resolve(caller, Reference.within(name, ref))
    return described_object(found, backend.registry.manifest(found))


@router.get(ADAPTER + "/history")
def history(name: Name, backend: Backend, caller: Reader) -> dict[str, Any]:
    """Moves of aliases, oldest first, and how many older ones are forgotten; version 0: the alias was removed.

    Who moved them is told the owner.
    """
    listing = backend.access.listing(caller, name)
    moves = [{"object": "adapter.move", **_fields(move)} for move in listing.history]
    return page(moves, False) | {"forgotten": listing.forgotten}


@router.put(ADAPTER + "/aliases/{alias}")
def move_alias(
    alias: Ref,
    body: AliasMove,
    name: Name,
    backend: Backend,
    changed: Noting,
    caller: Publisher,
    idempotency_key: IdempotencyKey = None,
) -> dict[str, Any]:
    """Point an alias to a version, if it points now where it is expected to.

    The same again with the same idempotency key, after a lost answer, changes nothing and has the same answer.
    """
    with changing(backend, changed, caller, name, "alias.move", f"{name}:{alias}"):
        found = backend.registry.tag(
            str(name), alias, str(body.version), body.expect, caller.tenant, _once(idempotency_key)
        )
    return version_object(found)


@router.delete(ADAPTER + "/aliases/{alias}")
def remove_alias(
    alias: Ref,
    name: Name,
    backend: Backend,
    changed: Noting,
    caller: Publisher,
    expect: Annotated[int | None, Query(ge=0, le=10**9)] = None,
    idempotency_key: IdempotencyKey = None,
) -> dict[str, Any]:
    """Remove an alias, if it points now where it is expected to. With an idempotency key as `move_alias`."""
    with changing(backend, changed, caller, name, "alias.remove", f"{name}:{alias}"):
        listing = backend.registry.untag(str(name), alias, expect, caller.tenant, _once(idempotency_key))
    return adapter_object(listing, caller)


@router.post(ADAPTER + "/aliases/{alias}/undo")
def undo_alias(
    alias: Ref,
    name: Name,
    backend: Backend,
    changed: Noting,
    caller: Publisher,
    idempotency_key: IdempotencyKey = None,
) -> dict[str, Any]:
    """Point an alias to where it pointed before its last move. With the same idempotency key it is one undo."""
    with changing(backend, changed, caller, name, "alias.undo", f"{name}:{alias}"):
        listing = backend.registry.undo(str(name), alias, caller.tenant, _once(idempotency_key, "undo"))
    return adapter_object(listing, caller)


@router.post(ADAPTER + "/versions/{ref}/{withdrawal}")
def withdraw(
    ref: Ref,
    withdrawal: Literal["yank", "recall", "delete"],
    body: Withdrawal,
    name: Name,
    backend: Backend,
    changed: Noting,
    caller: Publisher,
) -> dict[str, Any]:
    """Withdraw a version: only its digest finds it, nobody gets it any more, or its files are deleted as well."""
    reference = str(Reference.within(name, ref))
    with changing(backend, changed, caller, name, f"version.{withdrawal}", reference, body.reason):
        done = adapter_withdrawals.withdraw(
            backend.registry, backend.tenancy.database, reference, WITHDRAWALS[withdrawal], body.reason
        )
    return version_object(done)


@router.get(ADAPTER + "/versions/{ref}/reach")
def reach(ref: Ref, name: Name, backend: Backend, caller: Reader) -> dict[str, Any]:
    """Which servers a recall or deletion reached, what they had of the version, and who used it. Its owner is told."""
    backend.access.require_own(caller, name)
    version, reached = adapter_reach.reach(backend.registry, str(Reference.within(name, ref)))
    return page([server_object(each, caller) for each in reached], False) | {"version": version_object(version)}


@router.put(ADAPTER + "/visibility")
def share(body: Sharing, name: Name, backend: Backend, changed: Noting, caller: Administrator) -> dict[str, Any]:
    """Say who may read an adapter: its owner only, also some tenants, or all."""
    told = " ".join([body.visibility, *sorted(body.tenants)])
    with changing(backend, changed, caller, name, "adapter.share", str(name), told):
        listing = backend.access.share(name, body.visibility, body.tenants, caller)
    return adapter_object(listing, caller)


def _once(idempotency_key: str | None, action: Literal["move", "undo"] = "move") -> str | None:
    """What stands in the history for a key, which may say something that is nobody else's to read.

    The key of a move is another for an undo, which would look as if it was made already.
    """
    if idempotency_key is None:
        return None
    return hashlib.sha256(f"{action}\0{idempotency_key}".encode()).hexdigest()[:32]


def _fields(move: Any) -> dict[str, Any]:
    return {"alias": move.alias, "version": move.version, "at": move.at, "by": move.by}
