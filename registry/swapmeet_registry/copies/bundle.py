"""Take adapters to where no network goes: some versions in one file, and from there into another registry.

A name that is exported whole comes out as by `mirror`: the same numbers, aliases and withdrawals. A version that is
exported alone is published under the next number that is free there. Its digest is the same in either case. All of a
bundle is checked before anything is written.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NoReturn
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from swapmeet_registry import canonical
from swapmeet_registry.admission.admit import admit
from swapmeet_registry.backend import Staged
from swapmeet_registry.contents import Contents
from swapmeet_registry.copies.bundle_file import (
    INDEX,
    Member,
    members,
    pieces,
    require_digest_of,
    write_end,
    write_member,
)
from swapmeet_registry.copies.mirror import Copier
from swapmeet_registry.errors import NotFound, Refused, RegistryError, StoreError
from swapmeet_registry.fault import reached
from swapmeet_registry.head import Head, Record
from swapmeet_registry.manifest import Manifest, StoredFile
from swapmeet_registry.names import AdapterName, Reference
from swapmeet_registry.origin.provenance import Document
from swapmeet_registry.registry import Registry
from swapmeet_registry.store_backend import blob_key, manifest_key
from swapmeet_registry.stores import Stored
from swapmeet_registry.stores.files import os_errors, sync_folder
from swapmeet_registry.upkeep.fsck import mistakes
from swapmeet_registry.version import Version


class _Part(BaseModel):
    """A name's head, as a whole or with some versions only; those that are not deleted are here."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True, validate_by_name=True)

    head: Head
    whole: bool

    def records(self) -> list[Record]:
        """The versions that are here."""
        return [record for record in self.head.versions if record.deleted is None]


class Index(Document):
    """What a bundle has: its parts, sorted by name."""

    schema_: Literal["swapmeet.bundle/1"] = Field("swapmeet.bundle/1", alias="schema")
    parts: tuple[_Part, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Imported:
    """What came out of a bundle: a version there, and its number and whether it was new here."""

    name: str
    version: int
    number: int
    digest: str
    new: bool


def export_bundle(registry: Registry, refs: Iterable[str], file: Path) -> tuple[Version, ...]:
    """Write versions into a file, which appears whole or not at all.

    Args:
        registry: where they are.
        refs: `TENANT/NAME` for all versions with aliases and history; `TENANT/NAME:3`, `:ALIAS` or `@sha256:…` for one.
        file: must not exist.

    Returns:
        What is in it.

    Raises:
        NotFound, Recalled: a single version may not be used.
        Refused: the file exists, or nothing is to be exported.
        StoreError: the file can not be written.
    """
    index = Index(parts=tuple(_parts(registry, refs))) if (refs := list(refs)) else _refuse_nothing()
    with os_errors(f"write {file}"):
        if file.exists():
            raise Refused(f"{file} exists. Name a new file, or remove it.")
        partial = file.with_name(f".{file.name}.{uuid4().hex}.partial")
        try:
            with partial.open("xb") as stream:
                exported = tuple(_write(registry, index, stream))
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
        sync_folder(file.absolute().parent)
    return exported


def import_bundle(registry: Registry, file: Path) -> tuple[Imported, ...]:
    """Publish what a file has; what is there already stays as it is.

    Raises:
        Conflict: the registry has other versions under the numbers of a name that is here as a whole.
        Refused: the file is damaged or no bundle, or a version in it is unsound; nothing was written.
        StoreError: the file can not be read, or the registry not be written; what was published stays.
    """
    with os_errors(f"read {file}"), _opened(file) as bundle:
        copier = Copier(bundle, registry.backend)
        for part in bundle.index.parts:
            _require_sound(copier, part)
        found = [each for part in bundle.index.parts for each in _take_in(registry, copier, part)]
    return tuple(found)


def _take_in(registry: Registry, copier: Copier, part: _Part) -> Iterator[Imported]:
    name = AdapterName.parse(part.head.adapter)
    try:
        known = {record.digest for record in registry.head(str(name)).versions}
    except NotFound:
        known = set()
    if part.whole:
        copier.follow(name)
    for record in part.records():
        number = record.version if part.whole else copier.publish(part.head, record).version
        reached("bundle.version")
        yield Imported(str(name), record.version, number, record.digest, record.digest not in known)


def _parts(registry: Registry, refs: Iterable[str]) -> Iterator[_Part]:
    """The parts for these references; all mistakes are told at once."""
    wanted: dict[AdapterName, set[int] | None] = {}
    mistakes = []
    for ref in refs:
        try:
            reference = Reference.parse(ref)
            whole = reference.version is None and reference.alias is None and reference.digest is None
            number = registry.resolve(ref).version if not whole else len(registry.head(ref).versions)
        except StoreError:
            raise
        except RegistryError as error:
            mistakes.append(error)
            continue
        single = wanted.setdefault(reference.name, set())
        if whole or single is None:
            wanted[reference.name] = None
        else:
            single.add(number)
    if mistakes:
        raise type(mistakes[0])(" ".join(map(str, mistakes)))
    for name, numbers in sorted(wanted.items()):
        head = registry.head(str(name))
        if numbers is not None:  # whoever gets one version need not learn of the others
            kept = tuple(record for record in head.versions if record.version in numbers)
            head = Head(adapter=str(name), versions=kept)
        yield _Part(head=head, whole=numbers is None)


def _write(registry: Registry, index: Index, stream: IO[bytes]) -> Iterator[Version]:
    """The index, and of each version its manifest and the files that are not here yet."""
    contents, written = Contents(registry.backend), set[str]()
    data = index.encode()
    write_member(stream, INDEX + canonical.digest(data).removeprefix("sha256:"), len(data), [data])
    for part in index.parts:
        for record in part.records():
            version = Version.of(part.head, record)
            manifest = contents.manifest(version)
            raw = registry.backend.manifest(version) or b""
            write_member(stream, manifest_key(version.digest), len(raw), [raw])
            for file in manifest.files:
                if blob_key(file) not in written:
                    written.add(blob_key(file))
                    write_member(stream, blob_key(file), file.size, contents.blob(version, file))
            reached("bundle.exported")
            yield version
    write_end(stream)


@contextmanager
def _opened(file: Path) -> Iterator["_Bundle"]:
    """A bundle of which every byte was checked."""
    with file.open("rb") as stream:
        yield _Bundle(file, stream)


class _Bundle:
    """A bundle as a backend that can only be read.

    Raises:
        Refused: it is not what it must be.
    """

    def __init__(self, file: Path, stream: IO[bytes]) -> None:
        self._file, self._stream = file, stream
        self._members: dict[str, Member] = {}
        listed = members(stream, file)
        first = next(listed, None)
        if first is None or not first.name.startswith(INDEX):
            raise Refused(f"{file} is no bundle: it does not begin with an index.")
        require_digest_of(stream, first, file)
        self.index = Index.decode(b"".join(pieces(stream, first)), f"The index of {file}")
        self._parts = {part.head.adapter: part for part in self.index.parts}
        self._require_index()
        self._read(listed)

    @property
    def url(self) -> str:
        """The file's."""
        return self._file.absolute().as_uri()

    def names(self, tenant: str | None = None) -> list[str]:
        """See `Backend`."""
        return sorted(name for name in self._parts if tenant is None or name.startswith(f"{tenant}/"))

    def head(self, name: AdapterName) -> Stored | None:
        """See `Backend`."""
        part = self._parts.get(str(name))
        return Stored(part.head.encode(), "bundle") if part else None

    def manifest(self, version: Version) -> bytes | None:
        """See `Backend`."""
        return self._bytes(manifest_key(version.digest))

    def blob(self, version: Version, file: StoredFile) -> Iterator[bytes] | None:  # noqa: ARG002
        """See `Backend`."""
        member = self._members.get(blob_key(file))
        return pieces(self._stream, member) if member else None

    def stated(self, version: Version, file: StoredFile) -> tuple[int, str] | None:  # noqa: ARG002
        """See `Backend`."""
        return None

    def signature(self, version: Version, key: str, limit: int) -> bytes | None:  # noqa: ARG002
        """See `Backend`: signatures do not travel in bundles."""
        return None

    def put_signature(self, version: Version, key: str, bundle: bytes) -> NoReturn:  # noqa: ARG002
        """See `Backend`."""
        raise Refused(f"{self._file} is a bundle, and can not be published to.")

    def signers(self, version: Version) -> list[str]:  # noqa: ARG002
        """See `Backend`."""
        return []

    def place(self, version: Version) -> str:  # noqa: ARG002
        """See `Backend`."""
        return str(self._file)

    def absence(self, name: AdapterName) -> str:  # noqa: ARG002
        """See `Backend`."""
        return f"{self._file} has {', '.join(self._parts)}."

    def stage(self, *_: object) -> NoReturn:
        """See `Backend`."""
        raise Refused(f"{self._file} is a bundle, and can not be published to.")

    def swap(self, name: AdapterName, head: Head, expected: str | None, staged: Staged | None = None) -> NoReturn:  # noqa: ARG002
        """See `Backend`."""
        raise Refused(f"{self._file} is a bundle, and can not be published to.")

    def settle(self, name: AdapterName, head: Head) -> None:
        """See `Backend`: nothing is ever left undone."""

    def _bytes(self, name: str) -> bytes | None:
        member = self._members.get(name)
        return b"".join(pieces(self._stream, member)) if member else None

    def _require_index(self) -> None:
        if len(self._parts) < len(self.index.parts):
            raise Refused(f"The index of {self._file} names an adapter twice. Do not trust it.")
        for name, part in self._parts.items():
            AdapterName.parse(name)
            if mistake := next(mistakes(part.head), None) if part.whole else None:
                raise Refused(f"The index of {self._file} contradicts itself about {name}: {mistake} Do not trust it.")

    def _read(self, listed: Iterator[Member]) -> None:
        """Compare every byte with its digest; there must be what the index and manifests name, and nothing else."""
        versions = [Version.of(part.head, record) for part in self.index.parts for record in part.records()]
        expected = {manifest_key(version.digest): version for version in versions}
        files: dict[str, int] = {}
        for member in listed:
            version = expected.get(member.name)
            if member.name in self._members or (version is None and files.get(member.name) != member.size):
                raise Refused(f"{self._file} holds {member.name}, which nothing in it needs. Do not trust it.")
            require_digest_of(self._stream, member, self._file)
            self._members[member.name] = member
            if version is not None:
                files |= self._files(version)
        if missing := sorted((expected.keys() | files.keys()) - self._members.keys()):
            raise Refused(f"{self._file} lacks {missing[0]} ({len(missing)} in all). Export it again.")

    def _files(self, version: Version) -> dict[str, int]:
        data = self._bytes(manifest_key(version.digest)) or b""
        manifest = Manifest.decode(data, f"The manifest of {version} in {self._file}")
        if manifest.adapter != version.name or canonical.digest(data) != version.digest:
            raise Refused(f"The manifest of {version} in {self._file} is one of {manifest.adapter}. Do not trust it.")
        return {blob_key(file): file.size for file in manifest.files}


def _require_sound(copier: Copier, part: _Part) -> None:
    """Refuse what could not have been published: a bundle may come from anybody."""
    for record in copier.lacking(part.head) if part.whole else part.records():
        with tempfile.TemporaryDirectory(prefix="swapmeet-") as scratch:
            manifest = copier.fetch(Version.of(part.head, record), Path(scratch))
            with admit(Path(scratch), manifest.base):
                pass


def _refuse_nothing() -> NoReturn:
    raise Refused("Nothing is to be exported. Name adapters or versions.")
