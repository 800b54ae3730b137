"""The market of one server: its index, kept up with the registry, and its counts."""

import logging
import threading
import time

from swapmeet.database import Database
from swapmeet.errors import PlatformError
from swapmeet.marketplace.counters import Counters
from swapmeet_registry import AdapterName, Registry, RegistryError
from swapmeet_registry.index import Index

log = logging.getLogger("swapmeet.marketplace")

PAUSE = 15.0
"""Seconds between two looks at what others published past the server, if a look takes next to no time."""
SHARE = 10
"""A pause is at least so many times as long as the look before."""


class Market:
    """Index and counts in the platform's database. For any thread.

    Attributes:
        index: what is searched.
        counters: likes and downloads.
    """

    def __init__(self, database: Database, registry: Registry) -> None:
        self.index = Index(database.engine)
        self.counters = Counters(database)
        self._registry = registry

    def note(self, name: AdapterName | str) -> None:
        """Have the index know what happened to an adapter, now; where that fails, the next look takes it over."""
        try:
            self.index.update(self._registry, str(name))
            self.counters.recount()
        except (PlatformError, RegistryError) as error:
            log.warning("the index does not know yet what happened to %s: %s", name, error)

    def refresh(self) -> int:
        """Take over whatever changed in the registry; gives the number of adapters that were looked at.

        Raises:
            DatabaseFailed, RegistryError: it can not be done; what was taken over stays.
        """
        self.index.prepare()  # one that was lost, or is another version's, is made anew
        count = self.index.refresh(self._registry)
        self.counters.recount()
        return count

    def serve(self, stop: threading.Event) -> None:
        """Refresh at once, and then now and then, until told to stop; a failure is logged, and tried again."""
        while not stop.is_set():
            began = time.monotonic()
            try:
                self.refresh()
            except (PlatformError, RegistryError) as error:
                log.warning("the search index could not be refreshed, to be tried again: %s", error)
            except Exception:
                log.exception("the search index could not be refreshed, to be tried again")
            stop.wait(max(PAUSE, SHARE * (time.monotonic() - began)))
