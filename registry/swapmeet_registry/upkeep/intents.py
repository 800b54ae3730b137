"""Intents: what a publisher says before it writes, so that a collection of garbage leaves its objects alone.

    intents/ID.json         the keys that a publish under way needs

An intent is written before the first object and removed after the head. One whose publisher was killed is
ignored once it is older than `LIFETIME`; a publisher that takes longer than half of that gives up.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal
from uuid import uuid4

from pydantic import Field

from swapmeet_registry.errors import StoreError
from swapmeet_registry.fault import reached
from swapmeet_registry.origin.provenance import Document
from swapmeet_registry.stores import Store
from swapmeet_registry.upkeep.condemned import Condemned

FOLDER = "intents/"
LIFETIME = 24 * 3600.0
"""Seconds that an intent protects what it names."""


class Intent(Document):
    """The keys that a publish needs."""

    schema_: Literal["swapmeet.intent/1"] = Field("swapmeet.intent/1", alias="schema")
    keys: tuple[str, ...]


class Intents:
    """The intents in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def declare(self, keys: tuple[str, ...]) -> "Declared":
        """Write an intent, and make sure that a collection under way takes note of it."""
        own = f"{FOLDER}{uuid4().hex}.json"
        data = Intent(keys=keys).encode()
        declared = Declared(self._store, own, time.monotonic(), time.time())
        self._store.put(own, data, hashlib.sha256(data).hexdigest())
        reached("push.intent")
        try:
            Condemned(self._store).spare(keys)
        except BaseException:
            declared.end()
            raise
        reached("push.spared")
        return declared

    def protected(self, lifetime: float = LIFETIME) -> set[str]:
        """All keys that intents younger than `lifetime` seconds name.

        Raises:
            Refused: an intent can not be read.
        """
        found: set[str] = set()
        for key in self._of_age(lambda age: age <= lifetime):
            stored = self._store.get(key)
            if stored is not None:  # else it ended just now
                found.update(Intent.decode(stored.data, f"{key} in {self._store.url}").keys)
        return found

    def sweep(self, lifetime: float = LIFETIME) -> None:
        """Remove intents that protect nothing any more."""
        for key in list(self._of_age(lambda age: age > 2 * lifetime)):
            self._store.delete(key)

    def _of_age(self, wanted: Callable[[float], bool]) -> Iterator[str]:
        moment = time.time()
        return (entry.key for entry in self._store.scan(FOLDER) if wanted(moment - entry.written_at))


@dataclass(frozen=True, slots=True)
class Declared:
    """An intent under `key`, since a moment of two clocks: one stops while the machine sleeps, the other may be set."""

    store: Store
    key: str
    since: float
    since_by_calendar: float

    def require_young(self) -> None:
        """To be called before the head is written.

        Raises:
            StoreError: the intent may not count any more.
        """
        if max(time.monotonic() - self.since, time.time() - self.since_by_calendar) > LIFETIME / 2:
            raise StoreError("Publishing took so long that what was written may be collected. Push again.")

    def end(self) -> None:
        """Remove it, whatever became of the publish; where the store is away it is swept later."""
        with suppress(StoreError):
            self.store.delete(self.key)
        reached("push.intent_ended")
