"""Check that a registry is whole: every head, every version's manifest and files, every alias; and mend what can be.

Heads are read first and files listed after, so that what is published meanwhile is no finding; a version that was
deleted meanwhile is none, either. Memory does not grow with the registry.
"""

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, islice

from swapmeet_registry.backend import Backend, open_backend
from swapmeet_registry.contents import Contents, damaged
from swapmeet_registry.errors import Corrupt, InvalidName, NotFound, Refused
from swapmeet_registry.head import Head
from swapmeet_registry.heads import Heads
from swapmeet_registry.manifest import Manifest
from swapmeet_registry.names import AdapterName
from swapmeet_registry.store_backend import HEADS, StoreBackend, blob_key, head_key, name_of
from swapmeet_registry.stores import Store
from swapmeet_registry.stores.local import LocalStore
from swapmeet_registry.upkeep.findings import MOST, Findings
from swapmeet_registry.upkeep.head_mistakes import mistakes
from swapmeet_registry.upkeep.intents import FOLDER as INTENTS
from swapmeet_registry.upkeep.intents import LIFETIME
from swapmeet_registry.upkeep.live import FOLDERS
from swapmeet_registry.upkeep.mending import Mender
from swapmeet_registry.upkeep.needed import Needed, NeededFile
from swapmeet_registry.upkeep.working_documents import damaged_documents
from swapmeet_registry.version import Version

READERS = 16
BATCH = 256


def fsck(
    store: str | Store, deep: bool = False, *, repair: bool = False, source: str | Store | None = None
) -> Findings:
    """Check a registry.

    Args:
        store: the registry's; its URL, or an open store.
        deep: read every byte and compare it with its SHA-256, instead of sizes only.
        repair: mend what is safe to mend: half-written files go, a Hub's tags are set, and what is missing or damaged
            is written anew from `source`.
        source: a registry that has the same versions, by digest.

    Raises:
        Refused: there is a `source`, but nothing is to be repaired.
        StoreError: the store can not be read, or, to repair it, written.
    """
    if source is not None and not repair:
        raise Refused("A source is only read to repair from. Say that you want that, or leave it out.")
    backend = open_backend(store)
    mender = Mender(backend, open_backend(source)) if source is not None else None
    with Needed() as needed:
        return _Check(backend, needed, mender, deep, repair).run()


class _Check:
    def __init__(self, backend: Backend, needed: Needed, mender: Mender | None, deep: bool, repair: bool) -> None:
        self._backend, self._needed, self._mender = backend, needed, mender
        self._deep, self._repair = deep, repair
        self._heads, self._contents = Heads(backend), Contents(backend)
        self._found = Findings()

    def run(self) -> Findings:
        local = isinstance(self._backend, StoreBackend) and isinstance(self._backend.store, LocalStore)
        at_once = 1 if local else READERS  # only a network's answers take their time
        with ThreadPoolExecutor(at_once, "fsck") as readers:
            versions = self._versions(readers, at_once)
            while batch := list(islice(versions, BATCH)):
                for version, read in zip(batch, readers.map(self._manifest, batch), strict=True):
                    self._take(version, read)
        self._found.files, self._found.bytes = self._needed.totals()
        if isinstance(self._backend, StoreBackend):
            self._compare(self._backend.store)
            self._count_leftovers(self._backend.store)
            for what in damaged_documents(self._backend.store):
                self._found.add(what)
        return self._found

    def _head(self, name: AdapterName) -> Head | NotFound | Corrupt:
        try:
            return self._heads.get(name)
        except (NotFound, Corrupt) as error:
            return error

    def _versions(self, readers: ThreadPoolExecutor, at_once: int) -> Iterator[Version]:
        """The versions of all sound heads that must be there."""
        names = self._names()
        while batch := list(islice(names, at_once)):
            yield from self._of_heads(zip(batch, readers.map(self._head, batch), strict=True))

    def _of_heads(self, read: Iterable[tuple[AdapterName, Head | NotFound | Corrupt]]) -> Iterator[Version]:
        for name, head in read:
            if isinstance(head, NotFound):  # a listing may be older than what it lists
                continue
            self._found.heads += 1
            if isinstance(head, Corrupt):
                self._found.add(str(head))
                continue
            if self._repair:
                self._backend.settle(name, head)
            for mistake in mistakes(head):
                self._found.add(f"The head of {name}: {mistake} Restore it from a copy.")
            for record in head.versions:
                if record.deleted is None:
                    self._found.versions += 1
                    yield Version.of(head, record)

    def _names(self) -> Iterator[AdapterName]:
        if not isinstance(self._backend, StoreBackend):
            yield from map(AdapterName.parse, self._backend.names())
            return
        for key in self._backend.store.list(HEADS):
            try:
                yield AdapterName.parse(name_of(key))
            except InvalidName:
                self._found.add(f"{key} in {self._backend.url} is no head. Move it away.")

    def _manifest(self, version: Version) -> Manifest | Exception:
        """A version's manifest, or what is wrong with it; on a Hub its files are compared, too."""
        try:
            manifest = self._contents.manifest(version)
            if manifest.adapter != version.name:
                raise Corrupt(f"The manifest of {version} is one of {manifest.adapter}. Delete the version.")
            if not isinstance(self._backend, StoreBackend):
                for file in manifest.files:
                    self._contents.check(version, file, read=self._deep)
        except (Corrupt, Refused) as error:
            return error
        return manifest

    def _take(self, version: Version, read: Manifest | Exception) -> None:
        if isinstance(read, Manifest):
            self._needed.add(version, read)
            return
        if self._deleted(version):
            self._found.versions -= 1
            return
        mended = self._mender.manifest(version) if self._mender else None
        self._found.add(str(read), mended is not None)
        self._needed.add(version, mended)

    def _compare(self, store: Store) -> None:
        """What versions need with what is there."""
        for folder in FOLDERS:
            for entry in store.scan(folder):
                sha256 = _sha256(entry.key)
                needed = self._needed.see(sha256) if folder == "blobs/" else None
                if needed is not None:
                    self._check_file(needed, entry.size)
                elif folder == "blobs/" or not self._needed.has_manifest(sha256):
                    self._found.orphans += 1
                    self._found.orphan_bytes += entry.size
                    if folder == "manifests/":
                        self._look_for_head(store, entry.key)
        for missing in self._needed.unseen():
            size = store.size(blob_key(missing.file))
            if size is None or size != missing.file.size or self._deep:
                self._check_file(missing, size)

    def _check_file(self, needed: NeededFile, size: int | None) -> None:
        file = needed.file
        try:
            if size != file.size:
                found = "nothing" if size is None else f"{size} bytes"
                raise damaged(needed.version, file, self._backend.place(needed.version), found)
            if self._deep:
                self._contents.check(needed.version, file, read=True)
        except Corrupt as error:
            versions = (each.version for each in chain([needed], self._needed.others(needed)))
            left = next((version for version in versions if not self._deleted(version)), None)
            if left is not None:
                mended = self._mender is not None and self._mender.file(left, file)
                what = str(error) if left == needed.version else f"{left} needs it, too: {error}"
                self._found.add(f"{what} ({blob_key(file)})", mended)

    def _look_for_head(self, store: Store, key: str) -> None:
        """Note the name of a manifest that no version has, if it has no head: maybe it had one."""
        if self._found.orphans > MOST or (stored := store.get(key)) is None:
            return
        with suppress(Refused, InvalidName):
            name = AdapterName.parse(Manifest.decode(stored.data, key).adapter)
            if str(name) not in self._found.headless and store.size(head_key(name)) is None:
                self._found.headless.append(str(name))

    def _deleted(self, version: Version) -> bool:
        """Whether a version was deleted while the check was under way."""
        try:
            head = self._heads.get(AdapterName.parse(version.name))
        except (NotFound, Corrupt):
            return False
        return any(record.version == version.version and record.deleted is not None for record in head.versions)

    def _count_leftovers(self, store: Store) -> None:
        self._found.intents = sum(time.time() - entry.written_at > LIFETIME for entry in store.scan(INTENTS))
        if isinstance(store, LocalStore):
            for partial in store.partials(LIFETIME):
                self._found.partials += 1
                if self._repair:
                    partial.unlink(missing_ok=True)


def _sha256(key: str) -> bytes:
    """The digest in a key such as `blobs/sha256/HEX` or `reports/sha256/HEX.json`; none where it has none."""
    parts = key.split("/")
    try:
        return bytes.fromhex(parts[2].partition(".")[0])
    except (IndexError, ValueError):
        return b""
