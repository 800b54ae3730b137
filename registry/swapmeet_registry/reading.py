"""What a registry tells: which versions there are, what they are made of, and what they come from."""

from collections.abc import Iterable, Iterator

from swapmeet_registry.admission import reports
from swapmeet_registry.admission.comparing import compared
from swapmeet_registry.admission.statistics import Report
from swapmeet_registry.backend import Backend
from swapmeet_registry.contents import Contents
from swapmeet_registry.head import Head
from swapmeet_registry.heads import Heads
from swapmeet_registry.manifest import Manifest, StoredFile
from swapmeet_registry.names import AdapterName, Reference
from swapmeet_registry.origin.lineage import MOST, Ancestor, ancestors
from swapmeet_registry.version import Listing, Version


class Reading:
    """Looks at heads, manifests and files; what is read is compared with its digest, and nothing is written."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._heads, self._contents = Heads(backend), Contents(backend)

    def resolve(self, ref: str) -> Version:
        """The version that `T/N`, `T/N:3`, `T/N:alias` or `T/N@sha256:HEX` names.

        Raises:
            InvalidName: the reference is misspelt.
            NotFound: there is none, or it was deleted, or yanked; a yanked version answers to its digest only.
            Recalled: it was recalled.
        """
        reference = Reference.parse(ref)
        head = self._heads.get(reference.name)
        return Version.of(head, head.resolve(reference))

    def find(self, ref: str) -> Version:
        """As `resolve`, but a version that was withdrawn is found, too: to look at, not for use.

        Raises:
            InvalidName: the reference is misspelt.
            NotFound: there is none.
        """
        reference = Reference.parse(ref)
        head = self._heads.get(reference.name)
        return Version.of(head, head.find(reference))

    def manifest(self, version: Version) -> Manifest:
        """What a version consists of.

        Raises:
            Corrupt: the stored manifest is gone or was changed.
        """
        return self._contents.manifest(version)

    def report(self, version: Version) -> Report | None:
        """Statistics of a version's weights, for `advice.lines`; None where the weights are too large to look at now.

        Raises:
            Corrupt: the version's manifest or weights are gone or were changed.
        """
        manifest = self.manifest(version)
        return reports.read(self.backend, version.digest, manifest, lambda file: self._contents.blob(version, file))

    def advice(self, version: Version, others: Iterable[str] | None = None) -> tuple[str, ...]:
        """What stands out of a version's weights, for people to judge: said at once, or not at all.

        Args:
            version: which.
            others: digests of versions to compare it with; its owner's other adapters on the same base where none are
                given.
        """
        return compared(self.backend, version.digest, self._beside(version) if others is None else others)

    def stream(self, version: Version, file: StoredFile, start: int = 0) -> Iterator[bytes]:
        """A file's bytes in pieces; the end comes only if they are the right ones.

        Args:
            version: whose file.
            file: one of its manifest's.
            start: the first byte that is wanted. Of what comes from behind the beginning of a large file, only the
                number is compared: the digest is of the whole.

        Raises:
            Corrupt: they are gone or were changed.
        """
        return self._contents.tail(version, file, start) if start else self._contents.blob(version, file)

    def lineage(self, ref: str | Version, reader: str | None = None, most: int = MOST) -> tuple[Ancestor, ...]:
        """What a version comes from: its parent first, then that one's, as far as they can be read.

        Args:
            ref: a reference, or a version that `resolve` gave.
            reader: the tenant who asks: what he may not see looks as if it were missing. None sees all.
            most: generations that are followed.

        Raises:
            Corrupt: the version's own manifest is gone or was changed.
            NotFound: there is no such version.
        """
        version = self.resolve(ref) if isinstance(ref, str) else ref
        return tuple(ancestors(self._heads, self.manifest, self.manifest(version), reader, most))

    def show(self, name: str) -> Listing:
        """Everything under a name.

        Raises:
            NotFound: there is no such adapter.
        """
        return Listing.of(self._heads.get(AdapterName.parse(name)))

    def head(self, name: str) -> Head:
        """All that is written down of a name.

        Raises:
            NotFound: there is no such adapter.
        """
        return self._heads.get(AdapterName.parse(name))

    def names(self, tenant: str | None = None) -> list[str]:
        """All adapters' names, or all of one tenant's, sorted."""
        return self.backend.names(tenant)

    def _beside(self, version: Version) -> Iterator[str | None]:
        """For each other name of its owner: the latest version's digest, or None where it is on another base."""
        base = self.manifest(version).base.weights
        for name in self.names(AdapterName.parse(version.name).tenant):
            head = self.head(name) if name != version.name else None
            other = Version.of(head, head.latest) if head and head.latest else None
            yield other.digest if other and self.manifest(other).base.weights == base else None
