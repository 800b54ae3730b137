"""The whole API over one platform's settings: every router, and what it stands on."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from fastapi import FastAPI

from swapmeet.adapter_publishes import Publishes
from swapmeet.database import Database
from swapmeet.gateway import adapters, hub_api, marketplace, models, webhooks
from swapmeet.gateway.admission import Admission
from swapmeet.gateway.app import create_app
from swapmeet.gateway.http_meter import HttpMeter
from swapmeet.gateway.services import Replicas, Services
from swapmeet.gateway.tuning import Tuning, build_tuning
from swapmeet.jobs import Jobs
from swapmeet.marketplace import Market
from swapmeet.permissions import Permissions
from swapmeet.secret_key import load_secret_key
from swapmeet.settings import Settings
from swapmeet.tenancy import Tenancy
from swapmeet.webhooks import Sender, Webhooks, announce
from swapmeet_registry import Fingerprint, Registry
from swapmeet_registry.bases import BaseLibrary

Background = Callable[[Settings, Database, Tuning], AbstractContextManager[None]]


def assemble(
    settings: Settings,
    base: Fingerprint,
    replicas: Replicas,
    meter: HttpMeter | None = None,
    *,
    proxied: bool = False,
    background: Background = lambda *_: nullcontext(),
) -> FastAPI:
    """An app with all routes; the database must have its tables.

    Args:
        settings: where everything is.
        base: the base that is hosted.
        replicas: what answers.
        meter: counts the app's requests.
        proxied: whether Ray Serve's proxy stands before it.
        background: what goes on beside the requests.
    """
    registry, database = Registry(settings.registry_url, settings.trust), Database(settings.database_url)
    services = Services(registry, Tenancy(database), base, replicas, Admission(settings.caller_requests))
    tuning = build_tuning(settings, database, registry, Jobs(database, announce), announce)
    app = create_app(
        services,
        meter,
        tuning,
        metrics_public=settings.metrics_public,
        proxied=proxied,
        background=lambda: background(settings, database, tuning),
    )
    models.install(app, Permissions(database))
    market = Market(database, registry)
    marketplace.install(app, market)
    library = BaseLibrary(settings.folder)
    publishes = Publishes(database, registry, tuning.store, library, tuning.spool)
    adapters.install(app, publishes, market.counters.downloaded)
    sender = Sender(private=settings.webhook_private)
    webhooks.install(app, Webhooks(database, load_secret_key(settings), sender))
    hub_api.install(app, market.names, market.counters.downloaded)  # the last: its paths begin with a tenant's name
    return app
