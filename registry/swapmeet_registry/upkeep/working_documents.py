"""The documents by which publishers, collections and servers agree: whether they can be read.

What they say is of no use for long, and heads have all that lasts. But one that is damaged stops all who need it.
"""

from collections.abc import Iterator

from swapmeet_registry.errors import Refused
from swapmeet_registry.origin.provenance import Document
from swapmeet_registry.recall_documents import Feed, ServerWord
from swapmeet_registry.recalls import FEED, SERVERS
from swapmeet_registry.stores import Store
from swapmeet_registry.upkeep.condemned import KEY as COLLECTION
from swapmeet_registry.upkeep.condemned import State
from swapmeet_registry.upkeep.intents import FOLDER as INTENTS
from swapmeet_registry.upkeep.intents import Intent

_KINDS: tuple[tuple[str, type[Document], str], ...] = (
    (COLLECTION, State, "Nobody can publish. Remove it while no collection of garbage is under way."),
    (INTENTS, Intent, "No garbage can be collected. Remove it while nobody publishes."),
    (FEED, Feed, "Servers notice recalls later. Remove it: heads have all that it said."),
    (SERVERS, ServerWord, "Who obeys recalls can not be told. Remove it: a server that runs writes it again."),
)


def damaged_documents(store: Store) -> Iterator[str]:
    """What is wrong with the working documents in a store, each with what to do."""
    for prefix, kind, advice in _KINDS:
        for key in store.list(prefix):
            stored = store.get(key)
            try:
                if stored is not None:  # else it ended just now
                    kind.decode(stored.data, f"{key} in {store.url}")
            except Refused as error:
                yield f"{error} {advice}"
