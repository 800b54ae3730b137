"""Adapters on a Hugging Face Hub: a model repository each, which PEFT loads as it is.

`hub_layout` says what is where in it. Version 3 is the commit with the tag `v3`. A publish is one commit of all files,
an alias's move one of the head alone; both name the commit that they were made for as their parent, so that of two only
one goes through. What the rules guard against:

* A commit whose answer is lost, or says 5xx, may have taken place. Each carries a nonce, and the branch is read back.
* The client leaves out files that are on the branch already, as it was when they were uploaded. So the uploads of a
  commit are always asked for after its parent is known: where the branch moved since, the parent is refused.
* A publisher may die between commit and tag. The next one sets the tag first.
* Others may write to the repository. Everything read is compared with its digest, and a tag beyond the head's versions
  stops the next publish.
"""

import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, urlsplit

from swapmeet_registry import canonical
from swapmeet_registry.backend import MAX_SIGNERS, NO_NOTES, LargeFile, Notes, Staged
from swapmeet_registry.contents import damaged
from swapmeet_registry.errors import Conflict, InvalidName, StoreDenied, StoreError
from swapmeet_registry.fault import reached
from swapmeet_registry.head import Head
from swapmeet_registry.manifest import Manifest, StoredFile
from swapmeet_registry.names import AdapterName
from swapmeet_registry.stores import hub_layout as layout
from swapmeet_registry.stores.hub_errors import endpoint
from swapmeet_registry.stores.hub_files import BRANCH, list_repositories, paths
from swapmeet_registry.stores.hub_names import adapter_name, is_organization, repository_name
from swapmeet_registry.stores.hub_repository import NONCE, HubRepository, overtaken
from swapmeet_registry.stores.hub_signed import signed_card
from swapmeet_registry.stores.hub_tags import require_room, revision, set_tags
from swapmeet_registry.stores.protocol import Stored, verified
from swapmeet_registry.version import Version

SMALL = 16 << 20
"""Bytes up to which a file is held in memory, and fetched without being asked about first. More than what a Hub takes
as part of a commit: whatever is not uploaded apart from it can not change meanwhile."""
ATTEMPTS = 20
"""How often a signature is committed while others commit to the same repository."""
VISIBILITIES = ("private", "public", "gated")

_log = logging.getLogger(__name__)


class HubBackend:
    """An organization's repositories; which one is an adapter's, `hub_names` says.

    Args:
        organization: whose repositories.
        visibility: of repositories that are made: `private`, `public`, or `gated` (to those who are let in).
    """

    def __init__(self, organization: str, visibility: str = "private") -> None:
        self.organization, self.visibility = organization, visibility

    @classmethod
    def open(cls, url: str) -> Self:
        """The backend behind `hf://ORGANIZATION` or `hf://ORGANIZATION?visibility=public`.

        Raises:
            InvalidName: the URL says something else.
        """
        parts = urlsplit(url)
        if "@" in url:
            raise InvalidName("The address of a Hub holds no token. Write hf://ORGANIZATION, and set HF_TOKEN.")
        asked = dict(parse_qsl(parts.query, keep_blank_values=True))
        visibility = asked.pop("visibility", "private")
        unknown = asked or visibility not in VISIBILITIES or parts.path.strip("/") or parts.fragment
        if unknown or not is_organization(parts.netloc):
            raise InvalidName(
                f"{url!r} is not a registry. Write hf://ORGANIZATION, with ?visibility=public or ?visibility=gated "
                "where new repositories should not be private."
            )
        return cls(parts.netloc, visibility)

    @property
    def url(self) -> str:
        """`hf://ORGANIZATION`."""
        return f"hf://{self.organization}" + (f"?visibility={self.visibility}" if self.visibility != "private" else "")

    def names(self, tenant: str | None = None) -> list[str]:
        """See `Backend`."""
        models = list_repositories(self.organization)
        found = [self._name_in(model.id) for model in models if layout.HEAD in paths(model)]
        return sorted(str(name) for name in found if name is not None and tenant in (None, name.tenant))

    def head(self, name: AdapterName) -> Stored | None:
        """See `Backend`; the tag is the commit that the branch is at."""
        return self.repository(name).get(BRANCH, layout.HEAD)

    def stage(self, name: AdapterName, manifest: Manifest, folder: Path, notes: Notes = NO_NOTES) -> Staged:
        """See `Backend`. Uploads the large files, and makes the repository if there is none."""
        repository = self.repository(name)
        sources = {layout.path_of(file): _source(folder / file.path, file) for file in manifest.files}
        sources |= {layout.signature_path(manifest.digest, key): bundle for key, bundle in notes.signatures.items()}
        if not repository.upload(sources):
            repository.create(self.visibility)
            reached("hub.created")
            if not repository.upload(sources):
                raise StoreError(f"The repository {repository.name} was deleted meanwhile. Push again.")
        for source in sources.values():
            if isinstance(source, LargeFile):  # the uploading client does not look again
                for _ in verified(source.path, source.sha256):
                    pass
        reached("hub.uploaded")
        return Staged(manifest, sources)

    def swap(self, name: AdapterName, head: Head, expected: str | None, staged: Staged | None = None) -> str:
        """See `Backend`."""
        repository = self.repository(name)
        if staged is None and expected is None:  # a copy of an adapter whose first version was deleted
            repository.create(self.visibility)
        parent = expected or _unclaimed(repository)
        files: dict[str, bytes | LargeFile] = {layout.HEAD: head.encode()}
        if staged is None:
            return repository.commit(files, (), parent, f"Aliases and notes of {name}")
        record = head.versions[-1]
        require_room(repository, head, parent)
        files |= layout.published(staged, repository.name, record.version)
        old = frozenset(filter(layout.goes_with_version, repository.files(parent)[1]))
        return repository.commit(
            files, old - files.keys() - {NONCE}, parent, f"Version {record.version} of {name}", record.digest
        )

    def settle(self, name: AdapterName, head: Head) -> None:
        """See `Backend`: sets the tags of versions that have none."""
        repository = self.repository(name)
        try:
            set_tags(repository, head.versions, repository.refs()[1])
        except StoreError as error:
            _log.warning(f"The newest version in {repository.name} has no tag yet: the next push sets it. {error}")

    def manifest(self, version: Version) -> bytes | None:
        """See `Backend`."""
        return self._small(version, layout.MANIFEST)

    def blob(self, version: Version, file: StoredFile) -> Iterator[bytes] | None:
        """See `Backend`. A large file that the Hub itself lists with another SHA-256 is not fetched."""
        path = layout.path_of(file)
        if file.size <= SMALL:
            data = self._small(version, path)
            return None if data is None else iter([data])
        repository = self._repository_of(version)
        at = revision(repository, version)
        listed = repository.listed(at, path)
        if listed is None:
            return None
        if listed[1] not in (None, file.sha256):
            raise damaged(version, file, self.place(version), f"{listed[0]} bytes with sha256:{listed[1]}")
        return repository.pieces(at, path)

    def stated(self, version: Version, file: StoredFile) -> tuple[int, str] | None:
        """See `Backend`; a Hub knows the SHA-256 of what was uploaded apart from its commit."""
        repository = self._repository_of(version)
        size, sha256 = repository.listed(revision(repository, version), layout.path_of(file)) or (0, None)
        return (size, sha256) if sha256 is not None else None

    def signature(self, version: Version, key: str, limit: int) -> bytes | None:
        """See `Backend`. It is on the branch: it came after the version."""
        stored = self._repository_of(version).get(BRANCH, layout.signature_path(version.digest, key))
        return stored.data[:limit] if stored else None

    def put_signature(self, version: Version, key: str, bundle: bytes) -> None:
        """See `Backend`. Where the version is the newest, its card names the key."""
        repository = self._repository_of(version)
        for _ in range(ATTEMPTS):
            parent, files = repository.files()
            written = {layout.signature_path(version.digest, key): bundle}
            card = signed_card(repository, version, parent, files, key)
            with suppress(Conflict):
                repository.commit(written | card, (), parent, f"Signature of {version}")
                return
        raise Conflict(f"{repository.name} is being changed by many others at once. Try again later.")

    def signers(self, version: Version) -> list[str]:
        """See `Backend`."""
        return layout.signers_in(self._repository_of(version).files()[1], version.digest)[:MAX_SIGNERS]

    def signed(self) -> Iterator[tuple[str, str]]:
        """See `Backend`."""
        yield from sorted(
            layout.signatures_in(path for each in list_repositories(self.organization) for path in paths(each))
        )

    def report(self, version: Version, limit: int) -> bytes | None:  # noqa: ARG002
        """See `Backend`: a Hub keeps none, and each is computed when it is asked for."""
        return None

    def place(self, version: Version) -> str:
        """See `Backend`."""
        repository = self._repository_of(version)
        return f"the tag v{version.version} of {repository.name} at {endpoint()}"

    def absence(self, name: AdapterName) -> str:
        """See `Backend`."""
        repository = self.repository(name)
        try:
            repository.files()
        except StoreDenied:
            return (
                f"Check its name, and set HF_TOKEN to one that may read {repository.name} at {endpoint()}: what is "
                "private looks as if it were missing."
            )
        return (
            f"The repository {repository.name} at {endpoint()} is there, but it has no {layout.HEAD}: it was not "
            "published by Swapmeet. Push to it to take it over, or load it with PEFT."
        )

    def repository(self, name: AdapterName) -> HubRepository:
        """An adapter's repository, whether or not it is there."""
        return HubRepository(f"{self.organization}/{repository_name(self.organization, name)}")

    def _repository_of(self, version: Version) -> HubRepository:
        return self.repository(AdapterName.parse(version.name))

    def _small(self, version: Version, path: str) -> bytes | None:
        repository = self._repository_of(version)
        stored = repository.get(f"v{version.version}", path)
        if stored is None and revision(repository, version) == BRANCH:
            stored = repository.get(BRANCH, path)
        return stored.data if stored else None

    def _name_in(self, repository: str) -> AdapterName | None:
        """The adapter in a repository that has a head; None where it is not the one that belongs there."""
        short = repository.partition("/")[2]
        known = adapter_name(self.organization, short)
        if known is not None:
            return known
        stored = HubRepository(repository).get(BRANCH, layout.HEAD)
        try:
            name = AdapterName.parse(str(canonical.decode(stored.data)["adapter"])) if stored else None
        except (ValueError, KeyError):
            return None
        return name if name and repository_name(self.organization, name) == short else None


def _unclaimed(repository: HubRepository) -> str:
    """The commit that a repository without a head is at."""
    commit, files = repository.files()
    if layout.HEAD in files:
        raise overtaken(repository.name)
    return commit


def _source(path: Path, file: StoredFile) -> bytes | LargeFile:
    """A small file's checked bytes; a large file stays where it is."""
    return LargeFile(path, file.sha256) if file.size > SMALL else b"".join(verified(path, file.sha256))
