"""Intents: what a publisher says before it writes, so that a collection of garbage leaves its objects alone.

    intents/ID.json         the keys that a publish under way needs

An intent is written before the first object and removed after the head. One whose publisher was killed is
ignored once it is older than `LIFETIME`; a publisher that takes longer than half of that gives up.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal
from uuid import uuid4

from pydantic import Field

from swapmeet_registry.condemned import Condemned
from swapmeet_registry.errors import StoreError
from swapmeet_registry.fault import reached
from swapmeet_registry.provenance import Document
from swapmeet_registry.stores import Store

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

    @contextmanager
    def declared(self, keys: tuple[str, ...]) -> Iterator[Callable[[], None]]:
        """An intent for as long as the block runs, which a collection under way has taken note of.

        Yields:
            what to call before the head is written: it raises a `StoreError` if the intent may not count any more.
        """
        started = time.monotonic()
        own = f"{FOLDER}{uuid4().hex}.json"
        data = Intent(keys=keys).encode()
        self._store.put(own, data, hashlib.sha256(data).hexdigest())
        reached("push.intent")
        try:
            Condemned(self._store).spare(keys)
            reached("push.spared")
            yield lambda: _require_young(started)
        finally:
            with suppress(StoreError):  # what became of the publish matters more, and it is swept later
                self._store.delete(own)
        reached("push.intent_ended")

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


def _require_young(started: float) -> None:
    if time.monotonic() - started > LIFETIME / 2:
        raise StoreError("Publishing took so long that what was written may be collected. Push again.")
