"""The market of one server: its index, kept up with the registry, and its counts."""

import logging
import threading
import time

from swapmeet.database import Database
from swapmeet.errors import PlatformError
from swapmeet.marketplace.beside import beside
from swapmeet.marketplace.by_name import Wanted, names
from swapmeet.marketplace.counters import Counters
from swapmeet_registry import AdapterName, Registry, RegistryError, Version
from swapmeet_registry.admission.comparing import MOST
from swapmeet_registry.index import Index
from swapmeet_registry.index.engines import reading

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
        self._database, self._registry = database, registry

    def note(self, name: AdapterName | str) -> None:
        """Have the index know what happened to an adapter, now; where that fails, the next look takes it over."""
        try:
            self.index.update(self._registry, str(name))
            self.counters.recount([str(name)])
        except (PlatformError, RegistryError) as error:
            log.warning("the index does not know yet what happened to %s: %s", name, error)

    def names(self, reader: str | None, wanted: Wanted) -> list[str]:
        """What a tenant may know of, by name; None may know of all.

        Raises:
            IndexFailed: the database can not be used.
        """
        with reading(self._database.engine) as connection:
            return names(connection, reader, wanted)

    def advice(self, version: Version, *, owner: bool) -> tuple[str, ...]:
        """What stands out of a version's weights; beside its owner's other adapters, which only he is told of."""
        others: list[str] = []
        if owner:
            try:
                with reading(self._database.engine) as connection:
                    others = beside(connection, version, MOST)
            except RegistryError as error:
                log.warning("%s is compared with nothing: %s", version, error)
        return self._registry.advice(version, others)

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
