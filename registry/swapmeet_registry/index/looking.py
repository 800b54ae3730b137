"""What the index has to know of an adapter: its head, and the manifests and cards of versions that are new to it."""

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swapmeet_registry.cards import Readme, read_readme
from swapmeet_registry.errors import Corrupt, InvalidName, NotFound, Refused
from swapmeet_registry.manifest import Manifest
from swapmeet_registry.store_backend import HEADS, StoreBackend, name_of
from swapmeet_registry.version import Listing, Version

if TYPE_CHECKING:
    from swapmeet_registry.registry import Registry

log = logging.getLogger(__name__)
TASK = "task:"
"""A tag that begins so names the task, where the card does not."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the index has of an adapter: how often it was written, and which versions."""

    changes: int = 0
    digests: frozenset[str] = frozenset()
    stamp: str = ""


@dataclass(frozen=True, slots=True)
class Content:
    """What a version is."""

    manifest: Manifest
    readme: Readme

    @property
    def task(self) -> str | None:
        """What it is for, in one word."""
        tagged = (tag.removeprefix(TASK) for tag in self.manifest.tags if tag.startswith(TASK))
        return self.readme.task or next(tagged, None)


@dataclass(frozen=True, slots=True)
class Found:
    """An adapter as the registry has it: its listing, and what the index did not know yet, by digest.

    `whole` says that nothing was unreadable.
    """

    listing: Listing
    contents: dict[str, Content]
    whole: bool


def look(registry: "Registry", name: str, known: Collection[str]) -> Found | None:
    """Read an adapter; None where there is none. A version that is damaged is left out, and told in the log.

    Raises:
        Corrupt: its head is damaged.
        StoreError: the store failed.
    """
    try:
        listing = registry.show(name)
    except (InvalidName, NotFound):
        return None
    contents, whole = {}, True
    for version in searched(listing):
        if version.digest not in known:
            try:
                manifest = registry.manifest(version)
                contents[version.digest] = Content(manifest, _readme(registry, version, manifest))
            except (Corrupt, Refused) as error:
                log.warning("%s is left out of the index: %s", version, error)
                whole = False
    return Found(listing, contents, whole)


def searched(listing: Listing) -> list[Version]:
    """The versions that the index has: all but deleted ones, whose files may be gone."""
    return [version for version in listing.versions if version.deleted is None]


def stamps(registry: "Registry") -> Iterator[tuple[str, str, float | None]]:
    """All adapters, with what tells whether their heads changed: a stamp, and when they were written; or "", None."""
    if isinstance(registry.backend, StoreBackend):
        for entry in registry.backend.store.scan(HEADS):
            stamp = entry.etag or f"{entry.size} {entry.written_at!r}"
            yield name_of(entry.key), stamp, None if entry.etag else entry.written_at
    else:
        for name in registry.names():
            yield name, "", None


def _readme(registry: "Registry", version: Version, manifest: Manifest) -> Readme:
    try:
        return read_readme(registry, version, manifest)
    except Corrupt as error:  # it is found by what its manifest says
        log.warning("the card of %s is left out of the index: %s", version, error)
        return Readme()
