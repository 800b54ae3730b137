"""Webhooks over HTTP, in the shapes of OpenAI's client, and what was delivered to them.

The client knows the routes as `/v1/webhook_endpoints`; people find them as `/v1/webhooks`, too.
"""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Body, Depends, FastAPI, Query, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from swapmeet.database.tables import DeliveryRow, WebhookRow
from swapmeet.fine_tuning.wire import seconds
from swapmeet.gateway.admission import Admission
from swapmeet.gateway.authority import Caller, may
from swapmeet.gateway.pages import page
from swapmeet.webhooks import EVENTS, Webhooks

PREFIXES = ("/v1/webhooks", "/v1/webhook_endpoints")
TESTS_AT_ONCE = 8
"""Of all tenants: a URL that hangs holds a thread, and none of those that other requests need."""
TENANT_TESTS = 2

router = APIRouter(tags=["webhooks"])
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
Reader = Annotated[Caller, Depends(may("read"))]
Administrator = Annotated[Caller, Depends(may("admin"))]
Limit = Annotated[int, Query(ge=1, le=100)]
Events = Annotated[list[str], Field(min_length=1, max_length=100)]
Url = Annotated[str, Field(min_length=1, max_length=2000)]
Name = Annotated[str, Field(max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")]


class _Input(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewWebhook(_Input):
    """What is to be told of what."""

    url: Url
    event_types: Events = list(EVENTS)
    name: Name = ""


class ChangedWebhook(_Input):
    """What is to be another from now on."""

    url: Url | None = None
    event_types: Events | None = None
    name: Name | None = None


class Rotation(_Input):
    """How long the old secret is to be valid."""

    keep_old_secret_active_for_24_hours: bool = False


class Trial(_Input):
    """Which event to send a sample of."""

    event_type: str = EVENTS[0]


def _route(method: str, path: str = "") -> Callable[[Endpoint], Endpoint]:
    """Add a route under both names: whole, as the request log and the metrics tell it."""

    def add(endpoint: Endpoint) -> Endpoint:
        for prefix in PREFIXES:
            router.add_api_route(prefix + path, endpoint, methods=[method])
        return endpoint

    return add


def install(app: FastAPI, webhooks: Webhooks) -> None:
    """Add the routes to an app, over these webhooks."""
    app.state.webhooks = webhooks
    app.state.webhook_tests = Admission(TENANT_TESTS), CapacityLimiter(TESTS_AT_ONCE)
    app.include_router(router)

    @app.get("/v1/webhook_event_types", tags=["webhooks"])
    async def event_types(_: Reader) -> dict[str, Any]:
        """The events that webhooks can be told of."""
        return {"object": "list", "data": list(EVENTS)}


async def backend(request: Request) -> Webhooks:
    """The app's webhooks, as a FastAPI dependency."""
    found = request.app.state.webhooks
    assert isinstance(found, Webhooks)
    return found


Backend = Annotated[Webhooks, Depends(backend)]


@_route("POST")
async def create(body: NewWebhook, hooks: Backend, caller: Administrator) -> dict[str, Any]:
    """Make a webhook; its secret is in this answer and in no other."""
    row, secret = await run_in_threadpool(hooks.create, caller.tenant, body.url, body.event_types, body.name, caller)
    return _webhook(row) | {"signing_secret": secret}


@_route("GET")
async def list_(hooks: Backend, caller: Reader, after: str | None = None, limit: Limit = 20) -> dict[str, Any]:
    """The tenant's webhooks, newest first."""
    rows, more = await run_in_threadpool(hooks.page, caller.tenant, after, limit)
    return page([_webhook(row) for row in rows], more)


@_route("GET", "/{webhook}")
async def get(webhook: str, hooks: Backend, caller: Reader) -> dict[str, Any]:
    """One webhook."""
    return _webhook(await run_in_threadpool(hooks.get, caller.tenant, webhook))


@_route("POST", "/{webhook}")
async def change(webhook: str, body: ChangedWebhook, hooks: Backend, caller: Administrator) -> dict[str, Any]:
    """Change what is given."""
    given = body.url, body.event_types, body.name
    changed = await run_in_threadpool(hooks.change, caller.tenant, webhook, *given, caller)
    return _webhook(changed)


@_route("DELETE", "/{webhook}")
async def delete(webhook: str, hooks: Backend, caller: Administrator) -> dict[str, Any]:
    """Delete a webhook with all that is still to be delivered to it."""
    await run_in_threadpool(hooks.delete, caller.tenant, webhook, caller)
    return {"id": webhook, "object": "webhook_endpoint.deleted", "deleted": True}


@_route("POST", "/{webhook}/rotate_secret")
async def rotate(
    webhook: str, hooks: Backend, caller: Administrator, body: Annotated[Rotation | None, Body()] = None
) -> dict[str, Any]:
    """Give a webhook a new secret, which is in this answer and in no other."""
    keep = body is not None and body.keep_old_secret_active_for_24_hours
    row, secret = await run_in_threadpool(hooks.rotate, caller.tenant, webhook, keep, caller)
    return _webhook(row) | {"signing_secret": secret}


@_route("POST", "/{webhook}/test")
async def try_out(
    webhook: str, request: Request, hooks: Backend, caller: Administrator, body: Annotated[Trial | None, Body()] = None
) -> dict[str, Any]:
    """Send a sample event now, and tell what the URL answered."""
    event = (body or Trial()).event_type
    admission, limiter = request.app.state.webhook_tests
    with admission.admit(caller.tenant):
        status = await to_thread.run_sync(hooks.test, caller.tenant, webhook, event, limiter=limiter)
    return {
        "object": "webhook_endpoint.test",
        "webhook_endpoint_id": webhook,
        "event_type": event,
        "status_code": status,
        "success": True,
    }


@_route("GET", "/{webhook}/deliveries")
async def deliveries(
    webhook: str, hooks: Backend, caller: Reader, after: str | None = None, limit: Limit = 20
) -> dict[str, Any]:
    """What was and is to be delivered, newest first."""
    rows, more = await run_in_threadpool(hooks.deliveries, caller.tenant, webhook, after, limit)
    return page([_delivery(row) for row in rows], more)


@_route("POST", "/{webhook}/deliveries/{delivery}/retry")
async def retry(webhook: str, delivery: str, hooks: Backend, caller: Administrator) -> dict[str, Any]:
    """Deliver once more, whatever became of it."""
    return _delivery(await run_in_threadpool(hooks.retry, caller.tenant, webhook, delivery))


def _webhook(row: WebhookRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "webhook_endpoint",
        "created_at": seconds(row.created_at),
        "updated_at": seconds(row.updated_at),
        "name": row.name,
        "url": row.url,
        "event_types": row.events,
        "signing_secret_hint": f"whsec_…{row.hint}",
    }


def _delivery(row: DeliveryRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "webhook_endpoint.delivery",
        "created_at": seconds(row.created_at),
        "event_type": row.type,
        "body": row.body,
        "state": row.state,
        "attempts": row.attempts,
        "next_attempt_at": seconds(row.next_at) if row.state == "pending" else None,
        "gives_up_at": seconds(row.deadline) if row.state == "pending" else None,
        "ended_at": seconds(row.ended_at),
        "error": row.error,
    }
