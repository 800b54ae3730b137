"""Copies versions from a source to a registry, each admitted and published, with what others made about them."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from swapmeet_registry.backend import Backend, Source
from swapmeet_registry.cards.visible import line
from swapmeet_registry.contents import Contents
from swapmeet_registry.copies.admitting import require_modest, require_sound
from swapmeet_registry.copies.following import following
from swapmeet_registry.copies.notes import notes_of
from swapmeet_registry.errors import Corrupt, NotFound, Unsound
from swapmeet_registry.fault import reached
from swapmeet_registry.head import Head, Record
from swapmeet_registry.heads import Heads, read_head
from swapmeet_registry.life import MAX_REASON, now
from swapmeet_registry.manifest import Manifest
from swapmeet_registry.names import AdapterName
from swapmeet_registry.recalls import Recalls
from swapmeet_registry.stores.files import os_errors
from swapmeet_registry.version import Version

NOT_ADMITTED = "not admitted: "
"""So begins the reason of a version that was deleted because it could not have been published."""


class Copier:
    """Copies names from one backend to another, and counts what it copied.

    Attributes:
        versions: how many were copied.
        bytes: of their files.
        unsound: versions that are not copied because admission refuses them, each with why.
    """

    def __init__(self, source: Source, target: Backend) -> None:
        self._source, self._target = source, target
        self._here, self._contents = Heads(target), Contents(source)
        self.versions = self.bytes = 0
        self.unsound: dict[str, str] = {}
        self._admitted: set[str] = set()

    def follow(self, name: AdapterName) -> bool:
        """Bring a name to where it is in the source; whether anything was to be done.

        A version that admission refuses is deleted in the target from the first, and so keeps its number and digest.

        Raises:
            Conflict: the target has something that the source has not.
            Corrupt: the source is damaged.
        """
        head, before = read_head(self._source, name), self._known(name)
        old = following(before, head, len(before.versions))  # all mistakes before the first write
        for record in head.versions[len(old.versions) :]:
            self._copy(head, record)
        after = self._here.change(name, lambda held: following(held, head, len(head.versions)), start=before)
        reached("mirror.head")
        if after.versions:
            self._target.settle(name, after)
        self._announce(before, after)
        for mine, theirs in zip(after.versions, head.versions, strict=False):
            if theirs.deleted is None and (mine.deleted or "").startswith(NOT_ADMITTED):
                self.unsound[str(Version.of(after, mine))] = str(mine.deleted).removeprefix(NOT_ADMITTED)
        return after != before

    def lacking(self, head: Head) -> list[Record]:
        """The versions that `follow` would copy.

        Raises:
            Conflict: the target has something that the source has not.
        """
        old = following(self._known(AdapterName.parse(head.adapter)), head, 0)
        return [record for record in head.versions[len(old.versions) :] if record.deleted is None]

    def publish(self, head: Head, record: Record) -> Version:
        """Publish one version under the next number of its name, unless the target has it under any."""
        name = AdapterName.parse(head.adapter)
        here = self._known(name)
        for known in here.versions:
            if known.digest == record.digest:
                return Version.of(here, known)

        def add(held: Head) -> Head:
            if any(known.digest == record.digest for known in held.versions):
                return held
            return held.publish(record.digest, record.created_at, record.publish)

        after = self._stage(Version.of(head, record), add)
        self._target.settle(name, after)
        (made,) = [known for known in after.versions if known.digest == record.digest]
        return Version.of(after, made)

    def fetch(self, version: Version, folder: Path) -> Manifest:
        """A version's manifest, and its files in a folder, each compared with its digest, and all of it admitted.

        Raises:
            Corrupt: something is gone or was changed.
            Unsound: the version could not have been published.
        """
        manifest = self._contents.manifest(version)
        if manifest.adapter != version.name:
            raise Corrupt(f"The manifest of {version} is one of {manifest.adapter}.")
        if len({file.path for file in manifest.files}) < len(manifest.files):
            raise Corrupt(f"The manifest of {version} names a file twice.")
        require_modest(version, manifest)
        with os_errors(f"write {folder}"):
            for file in manifest.files:
                with (folder / file.path).open("xb") as stream:
                    stream.writelines(self._contents.blob(version, file))
        if version.digest not in self._admitted:
            require_sound(version, manifest, folder)
            self._admitted.add(version.digest)
        return manifest

    def _known(self, name: AdapterName) -> Head:
        try:
            return self._here.get(name)
        except NotFound:
            return Head(adapter=str(name))

    def _copy(self, head: Head, record: Record) -> None:
        """Add the next version to the target; of one that is deleted, or not admitted, only what its head says."""
        name = AdapterName.parse(head.adapter)
        if record.deleted is None:
            try:
                self._stage(Version.of(head, record), lambda held: following(held, head, record.version))
            except Unsound as error:
                head = head.withdraw(record.version, "deleted", _reason(error), now())
                record = head.versions[record.version - 1]
        if record.deleted is not None:
            self._here.change(name, lambda held: following(held, head, record.version), start=Head(adapter=str(name)))
        reached("mirror.version")

    def _stage(self, version: Version, add: Callable[[Head], Head]) -> Head:
        name = AdapterName.parse(version.name)
        with tempfile.TemporaryDirectory(prefix="swapmeet-") as scratch:
            manifest = self.fetch(version, Path(scratch))
            with self._target.stage(name, manifest, Path(scratch), notes_of(self._source, version)) as staged:
                after = self._here.change(name, add, start=Head(adapter=str(name)), staged=staged)
        self.versions += 1
        self.bytes += manifest.size
        return after

    def _announce(self, before: Head, after: Head) -> None:
        """Have the target's servers know what must not be served any more."""
        gone = {record.digest for record in before.versions if not _servable(record)}
        for record in after.versions[: len(before.versions)]:
            if not _servable(record) and record.digest not in gone:
                Recalls(self._target).tell(Version.of(after, record))


def _reason(error: Unsound) -> str:
    """Why a version is not admitted, as a reason is kept: in one line that can be printed."""
    return line(NOT_ADMITTED + str(error), MAX_REASON)


def _servable(record: Record) -> bool:
    return record.recalled is None and record.deleted is None
