"""A bundle to be read as any other place where adapters are: every byte of it was checked when it was opened."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from swapmeet_registry import canonical
from swapmeet_registry.admission.adapter_folder import MAX_FILES
from swapmeet_registry.copies.bundle_file import (
    INDEX,
    Member,
    members,
    note_name,
    pieces,
    require_digest_of,
)
from swapmeet_registry.copies.bundle_index import Index, Noted
from swapmeet_registry.copies.notes import MAX_SIGNATURES, require_report, require_signature
from swapmeet_registry.errors import Refused
from swapmeet_registry.manifest import Manifest, StoredFile
from swapmeet_registry.names import AdapterName
from swapmeet_registry.store_backend import blob_key, manifest_key
from swapmeet_registry.stores import Stored
from swapmeet_registry.version import Version


@contextmanager
def opened(file: Path) -> Iterator["BundleSource"]:
    """A bundle of which every byte was checked.

    Raises:
        Refused: it is not what it must be.
    """
    with file.open("rb") as stream:
        yield BundleSource(file, stream)


class BundleSource:
    """A bundle as a `Source`."""

    def __init__(self, file: Path, stream: IO[bytes]) -> None:
        self._file, self._stream = file, stream
        self._members: dict[str, Member] = {}
        listed = members(stream, file)
        first = next(listed, None)
        if first is None or not first.name.startswith(INDEX):
            raise Refused(f"{file} is no bundle: it does not begin with an index.")
        require_digest_of(stream, first, file)
        self.index = Index.decode(b"".join(pieces(stream, first)), f"The index of {file}")
        self.index.require_consistent(f"The index of {file}")
        self._parts = {part.head.adapter: part for part in self.index.parts}
        self._noted = {digest: noted for part in self.index.parts for digest, noted in part.notes.items()}
        self._read(listed)
        self._require_notes()

    @property
    def url(self) -> str:
        """The file's."""
        return self._file.absolute().as_uri()

    def names(self, tenant: str | None = None) -> list[str]:
        """See `Source`."""
        return sorted(name for name in self._parts if tenant is None or name.startswith(f"{tenant}/"))

    def head(self, name: AdapterName) -> Stored | None:
        """See `Source`."""
        part = self._parts.get(str(name))
        return Stored(part.head.encode(), "bundle") if part else None

    def manifest(self, version: Version) -> bytes | None:
        """See `Source`."""
        return self._bytes(manifest_key(version.digest))

    def blob(self, version: Version, file: StoredFile) -> Iterator[bytes] | None:  # noqa: ARG002
        """See `Source`."""
        member = self._members.get(blob_key(file))
        return pieces(self._stream, member) if member else None

    def stated(self, version: Version, file: StoredFile) -> tuple[int, str] | None:  # noqa: ARG002
        """See `Source`."""
        member = self._members.get(blob_key(file))
        return (member.size, member.sha256) if member else None

    def signature(self, version: Version, key: str, limit: int) -> bytes | None:
        """See `Source`."""
        sha256 = self._about(version).signatures.get(key)
        data = self._bytes(note_name(sha256)) if sha256 else None
        return data[:limit] if data is not None else None

    def signers(self, version: Version) -> list[str]:
        """See `Source`."""
        return sorted(self._about(version).signatures)

    def signed(self) -> Iterator[tuple[str, str]]:
        """See `Source`."""
        yield from sorted((digest, key) for digest, noted in self._noted.items() for key in noted.signatures)

    def report(self, version: Version, limit: int) -> bytes | None:
        """See `Source`."""
        sha256 = self._about(version).report
        data = self._bytes(note_name(sha256)) if sha256 else None
        return data[:limit] if data is not None else None

    def place(self, version: Version) -> str:  # noqa: ARG002
        """See `Source`."""
        return str(self._file)

    def absence(self, name: AdapterName) -> str:  # noqa: ARG002
        """See `Source`."""
        return f"{self._file} has {', '.join(self._parts)}."

    def _about(self, version: Version) -> Noted:
        return self._noted.get(version.digest, Noted())

    def _bytes(self, name: str) -> bytes | None:
        member = self._members.get(name)
        return b"".join(pieces(self._stream, member)) if member else None

    def _read(self, listed: Iterator[Member]) -> None:
        """Compare every byte with its digest; there must be what the index and manifests name, and nothing else."""
        manifests = {manifest_key(each.digest): each for part in self.index.parts for each in part.versions()}
        notes = {note_name(sha256) for noted in self._noted.values() for sha256 in _digests(noted)}
        files: dict[str, int] = {}
        for member in listed:
            needed = member.name in manifests or member.name in notes or files.get(member.name) == member.size
            if member.name in self._members or not needed:
                raise Refused(f"{self._file} holds {member.name}, which nothing in it needs. Do not trust it.")
            require_digest_of(self._stream, member, self._file)
            self._members[member.name] = member
            if (version := manifests.get(member.name)) is not None:
                files |= self._files(version)
        if missing := sorted((manifests.keys() | notes | files.keys()) - self._members.keys()):
            raise Refused(f"{self._file} lacks {missing[0]} ({len(missing)} in all). Export it again.")

    def _files(self, version: Version) -> dict[str, int]:
        data = self._bytes(manifest_key(version.digest)) or b""
        manifest = Manifest.decode(data, f"The manifest of {version} in {self._file}")
        if manifest.adapter != version.name or canonical.digest(data) != version.digest:
            raise Refused(f"The manifest of {version} in {self._file} is one of {manifest.adapter}. Do not trust it.")
        if len(manifest.files) > MAX_FILES:
            raise Refused(
                f"{version} in {self._file} has {len(manifest.files)} files; an adapter may have {MAX_FILES}."
            )
        return {blob_key(file): file.size for file in manifest.files}

    def _require_notes(self) -> None:
        """Signatures and reports must look like some, whoever they are of."""
        for version in (each for part in self.index.parts for each in part.versions()):
            noted = self._about(version)
            if sum(self._members[note_name(sha256)].size for sha256 in noted.signatures.values()) > MAX_SIGNATURES:
                raise Refused(f"The signatures of {version} in {self._file} have over {MAX_SIGNATURES} bytes together.")
            for key, sha256 in noted.signatures.items():
                what = f"What {self._file} has of {version} by the key {key}"
                require_signature(self._bytes(note_name(sha256)) or b"", what)
            if noted.report is not None:
                report = self._bytes(note_name(noted.report)) or b""
                require_report(report, f"The report on {version} in {self._file}")


def _digests(noted: Noted) -> set[str]:
    return {*noted.signatures.values(), *([noted.report] if noted.report is not None else [])}
