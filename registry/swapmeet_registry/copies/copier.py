"""Copies versions from a source to a registry, each as a publish, with what others made about them."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from swapmeet_registry.backend import Backend, Source
from swapmeet_registry.contents import Contents
from swapmeet_registry.copies.following import following
from swapmeet_registry.copies.notes import notes_of
from swapmeet_registry.errors import Corrupt, NotFound
from swapmeet_registry.fault import reached
from swapmeet_registry.head import Head, Record
from swapmeet_registry.heads import Heads, read_head
from swapmeet_registry.manifest import Manifest
from swapmeet_registry.names import AdapterName
from swapmeet_registry.recalls import Recalls
from swapmeet_registry.version import Version


class Copier:
    """Copies names from one backend to another, and counts what it copied."""

    def __init__(self, source: Source, target: Backend) -> None:
        self._source, self._target = source, target
        self._here, self._contents = Heads(target), Contents(source)
        self.versions = self.bytes = 0

    def follow(self, name: AdapterName) -> bool:
        """Bring a name to where it is in the source; whether anything was to be done.

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
        """A version's manifest, and its files in a folder, each compared with its digest.

        Raises:
            Corrupt: something is gone or was changed.
        """
        manifest = self._contents.manifest(version)
        if manifest.adapter != version.name:
            raise Corrupt(f"The manifest of {version} is one of {manifest.adapter}.")
        if len({file.path for file in manifest.files}) < len(manifest.files):
            raise Corrupt(f"The manifest of {version} names a file twice.")
        for file in manifest.files:
            with (folder / file.path).open("xb") as stream:
                stream.writelines(self._contents.blob(version, file))
        return manifest

    def _known(self, name: AdapterName) -> Head:
        try:
            return self._here.get(name)
        except NotFound:
            return Head(adapter=str(name))

    def _copy(self, head: Head, record: Record) -> None:
        """Add the next version to the target; of a deleted one only what its head says."""

        def add(held: Head) -> Head:
            return following(held, head, record.version)

        name = AdapterName.parse(head.adapter)
        if record.deleted is not None:
            self._here.change(name, add, start=Head(adapter=str(name)))
        else:
            self._stage(Version.of(head, record), add)
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


def _servable(record: Record) -> bool:
    return record.recalled is None and record.deleted is None
