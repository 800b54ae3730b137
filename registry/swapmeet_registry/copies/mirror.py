"""Copy adapters from one registry to another, of any kind: the same versions under the same numbers and digests.

Versions go over in order, each as a publish, and then what their heads say besides: aliases with their history, who
withdrew what and why, who may read. Whoever is killed leaves what he copied, and the next goes on from there; once
all is there, nothing is written. What was changed in the target on its own is never overwritten: its name is refused.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr

from swapmeet_registry.backend import Backend
from swapmeet_registry.contents import Contents
from swapmeet_registry.errors import Conflict, Corrupt, NotFound, RegistryError, StoreError
from swapmeet_registry.fault import reached
from swapmeet_registry.head import Head, Record
from swapmeet_registry.heads import Heads
from swapmeet_registry.manifest import Manifest
from swapmeet_registry.names import AdapterName
from swapmeet_registry.recalls import Recalls
from swapmeet_registry.store_backend import StoreBackend
from swapmeet_registry.version import Version

NOTES = ("reports/", "signatures/")
"""What stands in stores about versions, under their manifests' digests."""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Mirrored:
    """How many names were looked at, and versions and bytes copied; and the names that were refused, each with why."""

    names: int
    versions: int
    bytes: int
    refused: dict[str, str]


class Copied(Manifest):
    """A manifest with the bytes that it was published as, whatever they would be if it were written anew."""

    _published: bytes = PrivateAttr(default=b"")

    @classmethod
    def of(cls, data: bytes, what: str) -> "Copied":
        """Read a manifest; `what` names it in errors."""
        manifest = cls.decode(data, what)
        manifest._published = data
        return manifest

    def encode(self) -> bytes:
        """The bytes as they were published."""
        return self._published


def mirror(
    source: Backend, target: Backend, names: Iterable[str] | None = None, tell: Tell = lambda _: None
) -> Mirrored:
    """Bring a target to where a source is.

    Args:
        source: what to copy.
        target: what then has the same.
        names: which adapters, `TENANT/NAME`; all if None.
        tell: is told of each name that was changed.

    Raises:
        InvalidName: a name is misspelt.
        NotFound: a name is not in the source.
        StoreError: one of the two can not be read or written; what was copied stays.
    """
    chosen = [AdapterName.parse(name) for name in (source.names() if names is None else dict.fromkeys(names))]
    if names is not None and (missing := [str(name) for name in chosen if source.head(name) is None]):
        raise NotFound(f"{source.url} has no {', '.join(missing)}. Check the names.")
    copier, refused = Copier(source, target), {}
    for name in chosen:
        before = copier.versions
        try:
            changed = copier.follow(name)
        except StoreError:
            raise
        except RegistryError as error:
            refused[str(name)] = str(error)
            continue
        if changed:
            tell(f"{name}: {copier.versions - before} versions copied")
    copier.copy_notes(None if names is None else chosen)
    return Mirrored(len(chosen), copier.versions, copier.bytes, refused)


class Copier:
    """Copies names from one backend to another, and counts what it copied."""

    def __init__(self, source: Backend, target: Backend) -> None:
        self._source, self._target = source, target
        self._there, self._here = Heads(source), Heads(target)
        self._contents = Contents(source)
        self.versions = self.bytes = 0

    def follow(self, name: AdapterName) -> bool:
        """Bring a name to where it is in the source; whether anything was to be done.

        Raises:
            Conflict: the target has something that the source has not.
            Corrupt: the source is damaged.
        """
        head, before = self._there.get(name), self._known(name)
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
        for known in self._known(name).versions:
            if known.digest == record.digest:
                return Version.of(self._known(name), known)

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
        self._contents.manifest(version)  # compares its digest
        data = self._source.manifest(version)
        manifest = Copied.of(data or b"", f"The manifest of {version}")
        if manifest.digest != version.digest or manifest.adapter != version.name:
            raise Corrupt(f"The manifest of {version} is one of {manifest.adapter}@{manifest.digest}.")
        if len({file.path for file in manifest.files}) < len(manifest.files):
            raise Corrupt(f"The manifest of {version} names a file twice.")
        for file in manifest.files:
            with (folder / file.path).open("xb") as stream:
                stream.writelines(self._contents.blob(version, file))
        return manifest

    def copy_notes(self, names: list[AdapterName] | None) -> None:
        """Copy reports and signatures that the target has not, where both are stores; of all versions, or of some."""
        source, target = self._source, self._target
        if not isinstance(source, StoreBackend) or not isinstance(target, StoreBackend):
            return
        digests = None if names is None else {record.digest for name in names for record in self._known(name).versions}
        for folder in NOTES:
            for key in _missing(source.store.list(folder), target.store.list(folder)):
                about = "sha256:" + key.split("/")[2].partition(".")[0]
                if (digests is None or about in digests) and (stored := source.store.get(key)) is not None:
                    with suppress(Conflict):  # somebody else wrote it meanwhile
                        target.store.swap(key, stored.data, None)

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
            with self._target.stage(name, manifest, Path(scratch)) as staged:
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


def following(held: Head, source: Head, count: int) -> Head:
    """A target's head with what it lacks of the source's first versions, and with all of them, of the rest, too.

    What was withdrawn in the target stays so.

    Raises:
        Conflict: the target has something that the source has not.
    """
    name = source.adapter
    for mine, theirs in zip(held.versions, source.versions, strict=False):
        if mine.digest != theirs.digest:
            raise Conflict(
                f"The target has another {name}:{mine.version}: {mine.digest}, where the source has {theirs.digest}. "
                "Mirror into a registry of its own, or publish under another name."
            )
    if len(held.versions) > len(source.versions):
        raise Conflict(
            f"The target has {name}:{len(held.versions)}, and the source only {len(source.versions)} versions. "
            "Mirror the other way round, or into a registry of its own."
        )
    if held.history != source.history[: len(held.history)]:
        raise Conflict(f"Aliases of {name} were moved in the target. Mirror into a registry of its own.")
    pairs = zip(held.versions, source.versions, strict=False)
    versions = [_withdrawn(mine, theirs) for mine, theirs in pairs]
    versions += source.versions[len(versions) : count]
    changes: dict[str, Any] = {"versions": tuple(versions)}
    if len(versions) == len(source.versions):
        changes |= {field: getattr(source, field) for field in ("aliases", "history", "visibility", "shared_with")}
    return held.model_copy(update=changes)


def _withdrawn(mine: Record, theirs: Record) -> Record:
    """The source's record, with what was withdrawn in the target only."""
    kept = {
        how: getattr(mine, how)
        for how in ("yanked", "recalled", "deleted")
        if getattr(mine, how) is not None and getattr(theirs, how) is None
    }
    return theirs.model_copy(update=kept | {"withdrawn_at": mine.withdrawn_at}) if kept else theirs


def _servable(record: Record) -> bool:
    return record.recalled is None and record.deleted is None


def _missing(wanted: Iterator[str], held: Iterator[str]) -> Iterator[str]:
    """What the first of two sorted listings has and the second has not."""
    other = next(held, None)
    for key in wanted:
        while other is not None and other < key:
            other = next(held, None)
        if other != key:
            yield key
