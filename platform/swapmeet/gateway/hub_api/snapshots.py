"""A version's files, as they are downloaded: those of its manifest, its provenance, and a card of what is known of it.

All are told as large files, by their SHA-256, so that clients can compare each with its manifest.
"""

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

from swapmeet_registry import Manifest, Provenance, Registry, StoredFile, Version
from swapmeet_registry.admission import lora_config
from swapmeet_registry.contents import Contents
from swapmeet_registry.errors import Corrupt

CARD = "README.md"
KEPT_BYTES = 32 << 20
KEPT = 4096
SMALL = 4096
"""About what a snapshot needs in memory beside what it generated."""


@dataclass(frozen=True)
class File:
    """A file of a snapshot: stored, or else with its generated `data`."""

    path: str
    size: int
    sha256: str
    stored: StoredFile | None = None
    data: bytes = b""

    @classmethod
    def generated(cls, path: str, data: bytes) -> "File":
        """A file that is not stored."""
        return cls(path, len(data), hashlib.sha256(data).hexdigest(), data=data)

    @cached_property
    def pointer(self) -> bytes:
        """What git has of a large file."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @cached_property
    def oid(self) -> str:
        """The pointer's name in git."""
        return hashlib.sha1(b"blob %d\0" % len(self.pointer) + self.pointer, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Snapshot:
    """A version, and its files by name."""

    version: Version
    manifest: Manifest
    files: dict[str, File]
    settings: bytes
    """Its `adapter_config.json`."""

    @property
    def memory(self) -> int:
        """About how many bytes it needs."""
        return SMALL + len(self.settings) + sum(len(file.data) for file in self.files.values())


class Snapshots:
    """Snapshots of a registry's versions; those that were asked for last are kept, as versions never change."""

    def __init__(self, registry: Registry) -> None:
        self.contents = Contents(registry.backend)
        self._kept: OrderedDict[str, Snapshot] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def of(self, version: Version) -> Snapshot:
        """A version's snapshot.

        Raises:
            Corrupt: what is stored was changed.
        """
        with self._lock:
            if (found := self._kept.get(version.pinned)) is not None:
                self._kept.move_to_end(version.pinned)
                return found
        made = self._make(version)
        with self._lock:
            if version.pinned not in self._kept:
                self._kept[version.pinned] = made
                self._bytes += made.memory
            while self._bytes > KEPT_BYTES or len(self._kept) > KEPT:
                self._bytes -= self._kept.popitem(last=False)[1].memory
        return made

    def _make(self, version: Version) -> Snapshot:
        from swapmeet_registry.stores.hub_card import card  # huggingface_hub takes long to import

        manifest = self.contents.manifest(version)
        stored = {file.path: file for file in manifest.files}
        if lora_config.FILE not in stored:
            raise Corrupt(f"The manifest of {version} names no {lora_config.FILE}. Publish the adapter again.")
        settings = b"".join(self.contents.blob(version, stored[lora_config.FILE]))
        readme = b"".join(self.contents.blob(version, stored[CARD])) if CARD in stored else None
        text = card(manifest, version.name, version.version, settings, readme)
        files = [File(path, file.size, file.sha256, file) for path, file in stored.items() if path != CARD]
        files += [
            File.generated(CARD, text.encode()),
            File.generated(Provenance.FILE, manifest.provenance().encode()),
        ]
        by_name = {file.path: file for file in sorted(files, key=lambda file: file.path)}
        return Snapshot(version, manifest, by_name, settings)
