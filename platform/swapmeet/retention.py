"""What is kept for how long: old usage by the day, the audit log, what runs left; and what tenants store in all.

Every server does it, each hour; whatever several do at once, or one leaves undone, is right in the end.
"""

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from swapmeet.adapter_publishes import Publishes
from swapmeet.database import Database
from swapmeet.errors import PlatformError
from swapmeet.jobs.leftovers import clear
from swapmeet.settings import Settings
from swapmeet.tenancy.audit import Audit
from swapmeet.tenancy.condensing import condense
from swapmeet.tenancy.stocktaking import Stocktaking
from swapmeet_registry import Registry, RegistryError
from swapmeet_registry.bases import BaseLibrary
from swapmeet_registry.stores import open_store

log = logging.getLogger("swapmeet.retention")

CLEAN_SECONDS = 3600.0
COUNT_SECONDS = 600.0
BEAT_SECONDS = 30.0


class Retention:
    """Keeps to the settings' retention, in one database, storage and registry."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings, self._database = settings, database
        self._store = open_store(settings.storage_url)
        registry = Registry(settings.registry_url)
        self._stocktaking = Stocktaking(database, registry)
        library, spool = BaseLibrary(settings.folder), settings.folder / "cache" / "uploads"
        self._publishes = Publishes(database, registry, self._store, library, spool)

    def serve(self, stop: threading.Event) -> None:
        """Count and clean now and then until told to stop; a failure is logged, and tried again the next time."""
        due = {self.count: 0.0, self.clean: time.monotonic() + BEAT_SECONDS}
        pauses = {self.count: COUNT_SECONDS, self.clean: CLEAN_SECONDS}
        while not stop.wait(BEAT_SECONDS):
            for work, at in due.items():
                if time.monotonic() >= at:
                    _try(work)
                    due[work] = time.monotonic() + pauses[work]

    def count(self) -> None:
        """Count the bytes of published adapters.

        Raises:
            RegistryError: the registry can not be read.
        """
        self._stocktaking.count()

    def clean(self) -> None:
        """Condense, forget and clear what is older than the settings keep it.

        Raises:
            PlatformError, RegistryError: database or storage failed; the rest is left to the next time.
        """
        settings, today = self._settings, _midnight()
        if settings.usage_days:
            condense(self._database, today - timedelta(days=settings.usage_days))
        if settings.audit_days:
            Audit(self._database).forget(today - timedelta(days=settings.audit_days))
        kept = timedelta(days=settings.failed_run_days) if settings.failed_run_days else None
        clear(self._database, self._store, kept)
        self._publishes.sweep()


def _midnight() -> datetime:
    """When the present day began, in UTC."""
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _try(work: Callable[[], None]) -> None:
    try:
        work()
    except (PlatformError, RegistryError, OSError) as error:
        log.warning("what is old could not be cleaned up, to be tried again: %s", error)
    except Exception:
        log.exception("what is old could not be cleaned up, to be tried again")
