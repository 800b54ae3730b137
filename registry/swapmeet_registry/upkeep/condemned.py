"""The one document through which a collection of garbage and publishers agree: `gc/state.json`.

A collection condemns keys first, looks a second time who needs them, and only then turns to deleting. A
publisher that declared its intent looks here: what is condemned it takes off the list, which makes the
collection look again; what is being deleted it waits for, and then writes anew. Each step is a
compare-and-swap, so that both sides see the same order of events. (Registries that go by age alone lose a
fresh publish of old bytes.)
"""

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from swapmeet_registry.errors import Conflict, StoreError
from swapmeet_registry.origin.provenance import Document
from swapmeet_registry.stores import Store

KEY = "gc/state.json"
LEASE = 600.0
"""Seconds after its last word that a collection counts as dead."""
MARGIN = 300.0
"""Seconds before that in which it deletes nothing more: longer than a deletion can be under way, with all attempts."""
PATIENCE = 900.0
"""Seconds that a publisher waits for keys that are being deleted."""


class State(Document):
    """Who collects, and what it is about to delete or is deleting.

    Attributes:
        step: grows with each write, so that the document never returns to earlier bytes.
        owner: the collection's nonce; empty when none is under way.
        expires: when the owner counts as dead, in seconds since the epoch.
        deleting: whether `keys` are being deleted, or only condemned.
        keys: which.
    """

    schema_: Literal["swapmeet.collection/1"] = Field("swapmeet.collection/1", alias="schema")
    step: int = 0
    owner: str = ""
    expires: float = 0.0
    deleting: bool = False
    keys: tuple[str, ...] = ()

    @property
    def active(self) -> bool:
        """Whether a collection is under way that is not dead."""
        return bool(self.owner) and time.time() < self.expires


@dataclass(frozen=True, slots=True)
class Seen:
    """The state as it was read; `etag` is None where there was none yet."""

    state: State
    etag: str | None


class Condemned:
    """The document in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self) -> Seen:
        """The state now."""
        stored = self._store.get(KEY)
        if stored is None:
            return Seen(State(), None)
        return Seen(State.decode(stored.data, f"{KEY} in {self._store.url}"), stored.etag)

    def write(self, seen: Seen, owner: str, *, deleting: bool = False, keys: Iterable[str] = ()) -> Seen:
        """The collection's next step.

        Raises:
            Conflict: a publisher, or another collection, wrote in between.
        """
        expires = time.time() + LEASE if owner else 0.0
        state = State(step=seen.state.step + 1, owner=owner, expires=expires, deleting=deleting, keys=tuple(keys))
        return Seen(state, self._store.swap(KEY, state.encode(), seen.etag))

    def release(self, owner: str, unanswered: Iterable[str] = ()) -> None:
        """End a collection that failed, so that the next need not wait until this one counts as dead.

        Args:
            owner: the collection's nonce; where another has taken over nothing happens.
            unanswered: keys whose deletion may still be under way somewhere in the network. For them the collection
                stays for as long as that can take: who wrote them anew before would lose what he wrote.

        Raises:
            StoreError: the store failed; the collection counts as dead by and by.
        """
        keys = tuple(sorted(unanswered))
        while (seen := self.read()).state.owner == owner:
            state = State(step=seen.state.step + 1)
            if keys:
                expires = min(seen.state.expires, time.time() + MARGIN)
                state = state.model_copy(update={"owner": owner, "expires": expires, "deleting": True, "keys": keys})
            with suppress(Conflict):  # a publisher objected just now
                self._store.swap(KEY, state.encode(), seen.etag)
                return

    def spare(self, needed: Iterable[str], patience: float = PATIENCE) -> None:
        """Make sure that none of these keys is deleted by a collection that is under way.

        To be called after the intent was written, and before any of the objects is.

        Raises:
            StoreError: a collection kept deleting them for too long.
        """
        wanted, deadline = set(needed), time.monotonic() + patience
        while True:
            seen = self.read()
            if wanted.isdisjoint(seen.state.keys):
                return
            if seen.state.deleting:
                if not seen.state.active:
                    return  # its owner deletes nothing any more, should it come to life again
                if time.monotonic() > deadline:
                    raise StoreError("A collection of garbage is deleting these very objects. Push again later.")
                time.sleep(0.2)
                continue
            rest = tuple(key for key in seen.state.keys if key not in wanted)
            state = seen.state.model_copy(update={"step": seen.state.step + 1, "keys": rest})
            try:
                self._store.swap(KEY, state.encode(), seen.etag)
                return
            except Conflict:
                continue
