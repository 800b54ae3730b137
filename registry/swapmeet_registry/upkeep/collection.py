"""Collect the garbage of a store: what no version needs, safely beside publishers and readers.

    look                which objects do versions and intents need?
    condemn             write down what is to go (`condemned`): from here on publishers can object
    look again          whoever declared an intent before he saw the list is seen now
    delete              what is still on the list; it can not be objected to any more, only waited for

`tests/registry/test_collection.py` runs this code against publishers in every order of steps.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from uuid import uuid4

from swapmeet_registry.errors import Conflict, Refused, RegistryError
from swapmeet_registry.stores import Entry, Store
from swapmeet_registry.upkeep.condemned import MARGIN, Condemned, Seen
from swapmeet_registry.upkeep.intents import LIFETIME, Intents
from swapmeet_registry.upkeep.live import FOLDERS, Live, side_by_side

BATCH = 1000
"""So many objects are condemned at once: a publisher that needs one of them waits until all are gone."""
AGE = 24 * 3600.0
"""Seconds that an object must be old, for the sake of publishers that declare no intents."""
GRACE = 3600.0
"""Seconds that a deleted version's files stay, for those who read it."""


@dataclass(frozen=True, slots=True)
class Collected:
    """How many objects went, or would have gone, and their bytes; how many were looked at."""

    objects: int
    bytes: int
    examined: int


def collect(
    store: Store, *, age: float = AGE, grace: float = GRACE, lifetime: float = LIFETIME, dry_run: bool = False
) -> Collected:
    """Delete what no version needs.

    Args:
        store: the registry's.
        age: seconds; younger objects stay.
        grace: seconds that the files of a deleted version stay.
        lifetime: seconds after which an intent counts as its dead publisher's.
        dry_run: only count.

    Raises:
        Conflict: another collection took over.
        Corrupt: a head or manifest is damaged; nothing was deleted that it may need.
        Refused: another collection is under way.
    """
    collection = _Collection(store, age, grace, lifetime)
    try:
        return collection.run(dry_run)
    finally:
        collection.close()


class _Collection:
    def __init__(self, store: Store, age: float, grace: float, lifetime: float) -> None:
        self._store, self._age, self._lifetime = store, age, lifetime
        self._condemned, self._intents, self._live = Condemned(store), Intents(store), Live(store, grace)
        self._owner = uuid4().hex
        self._unanswered: set[str] = set()
        self._examined = 0

    def close(self) -> None:
        self._live.close()

    def run(self, dry_run: bool) -> Collected:
        self._live.look(time.time())
        if dry_run:
            objects = size = 0
            for entry in self._garbage():
                objects, size = objects + 1, size + entry.size
            return Collected(objects, size, self._examined)
        try:
            return self._collect(self._begin())
        except BaseException:
            with suppress(RegistryError):  # what failed first is to be told
                self._condemned.release(self._owner, self._unanswered)
            raise

    def _collect(self, seen: Seen) -> Collected:
        objects = size = 0
        garbage = self._garbage()
        while batch := {entry.key: entry.size for entry in islice(garbage, BATCH)}:
            seen = self._condemned.write(seen, self._owner, keys=sorted(batch))
            seen = self._sentence(seen)
            side_by_side(self._store, partial(self._delete, seen), seen.state.keys)
            objects, size = objects + len(seen.state.keys), size + sum(batch[key] for key in seen.state.keys)
        self._intents.sweep(self._lifetime)
        self._condemned.write(seen, "")
        return Collected(objects, size, self._examined)

    def _begin(self) -> Seen:
        seen = self._condemned.read()
        if seen.state.active:
            raise Refused("A collection of garbage is under way in this store. Wait until it ends.")
        return self._condemned.write(seen, self._owner)

    def _garbage(self) -> Iterator[Entry]:
        """What nobody needed when its folder's part of the listing was read."""
        protected = self._intents.protected(self._lifetime)
        for folder in FOLDERS:
            for entry in self._store.scan(folder):
                self._examined += 1
                old = time.time() - entry.written_at >= self._age
                if old and entry.key not in protected and not self._live.needs(entry.key):
                    yield entry

    def _sentence(self, seen: Seen) -> Seen:
        """Look again, and turn to deleting what is still garbage and was not objected to."""
        while True:
            protected = self._intents.protected(self._lifetime)
            self._live.look(time.time())
            keys = [key for key in seen.state.keys if key not in protected and not self._live.needs(key)]
            try:
                return self._condemned.write(seen, self._owner, deleting=True, keys=keys)
            except Conflict:
                seen = self._condemned.read()
                if seen.state.owner != self._owner:
                    raise

    def _delete(self, seen: Seen, key: str) -> None:
        if time.time() > seen.state.expires - MARGIN:
            raise Conflict("The collection was held up for so long that others may take over. Start it again.")
        if not self._store.url.startswith("file:"):  # of a folder a deletion is over with its call, however it ends
            self._unanswered.add(key)
        self._store.delete(key)
        self._unanswered.discard(key)
