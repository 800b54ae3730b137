"""Which objects of a store its versions need."""

from collections.abc import Iterator
from datetime import datetime

from swapmeet_registry.contents import Contents
from swapmeet_registry.errors import Corrupt, InvalidName
from swapmeet_registry.head import Head, Record
from swapmeet_registry.heads import Heads
from swapmeet_registry.names import AdapterName
from swapmeet_registry.store_backend import HEADS, StoreBackend, name_of
from swapmeet_registry.stores import Entry, Store
from swapmeet_registry.version import Version

FOLDERS = ("blobs/", "manifests/", "reports/", "signatures/")
"""What is collected: objects under a SHA-256, of their own bytes or of the manifest that they belong to."""


class Live:
    """The objects that versions need, kept up by reading the heads that changed since the last look.

    A version counts for as long as it is not deleted, and for `grace` seconds after that, so that those who read it
    just then come to an end. What was needed once stays needed, in this object's life. A version costs it about
    200 bytes of memory for each file.
    """

    def __init__(self, store: Store, grace: float) -> None:
        self._store, self._grace = store, grace
        backend = StoreBackend(store)
        self._heads, self._contents = Heads(backend), Contents(backend)
        self._seen: dict[str, Entry] = {}
        self._needed: set[bytes] = set()

    def look(self, now: float) -> None:
        """Read the heads that changed, and the manifests of their new versions.

        Raises:
            Corrupt: a head or a manifest is damaged or gone; what it needs can not be known.
        """
        for entry in self._store.scan(HEADS):
            if self._seen.get(entry.key) != entry:
                head = self._head(entry.key)
                for record in self._kept(head, now):
                    self._add(head, record)
                self._seen[entry.key] = entry

    def needs(self, key: str) -> bool:
        """Whether a version needs an object."""
        return _digest(key) in self._needed

    def _head(self, key: str) -> Head:
        try:
            name = AdapterName.parse(name_of(key))
        except InvalidName as error:
            raise Corrupt(f"{key} in {self._store.url} is no head. Move it away.") from error
        return self._heads.get(name)

    def _kept(self, head: Head, now: float) -> Iterator[Record]:
        for record in head.versions:
            gone = record.withdrawn_at if record.deleted is not None else None
            if gone is None or now - datetime.fromisoformat(gone).timestamp() <= self._grace:
                yield record

    def _add(self, head: Head, record: Record) -> None:
        digest = bytes.fromhex(record.digest.removeprefix("sha256:"))
        if digest not in self._needed:
            manifest = self._contents.manifest(Version.of(head, record))
            self._needed.update(bytes.fromhex(file.sha256) for file in manifest.files)
            self._needed.add(digest)


def _digest(key: str) -> bytes:
    """The digest in a key such as `blobs/sha256/HEX` or `reports/sha256/HEX.json`; none where it has none."""
    parts = key.split("/")
    try:
        return bytes.fromhex(parts[2].partition(".")[0])
    except (IndexError, ValueError):
        return b""
