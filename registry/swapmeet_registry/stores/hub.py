"""Adapters on a Hugging Face Hub: a model repository each, which PEFT loads as it is.

    adapter_config.json, adapter_model.safetensors, …      the newest version's files
    swapmeet.json                                          its provenance, as in a pulled folder
    README.md                                              a card, made from its manifest
    .swapmeet/manifest.json                                its manifest
    .swapmeet/README.md                                    its own README.md, if it has one
    .swapmeet/head.json                                    all versions and aliases

Version 3 is the commit with the tag `v3`. A publish is one commit of all these files, an alias's move one of the head
alone; both name the commit that they were made for as their parent, so that of two only one goes through. What the
rules guard against:

* A commit whose answer is lost, or says 5xx, may have taken place. Each carries a nonce, and the branch is read back.
* The client leaves out files that are on the branch already, as it was when they were uploaded. So the uploads of a
  commit are always asked for after its parent is known: where the branch moved since, the parent is refused.
* A publisher may die between commit and tag. The next one sets the tag first.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session, hf_hub_url
from huggingface_hub import errors as hub
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status
from huggingface_hub.utils._pagination import paginate

from swapmeet_registry import canonical
from swapmeet_registry.backend import Staged
from swapmeet_registry.contents import damaged
from swapmeet_registry.errors import Conflict, Corrupt, InvalidName, StoreError
from swapmeet_registry.fault import reached
from swapmeet_registry.head import Head, Record
from swapmeet_registry.manifest import Manifest, StoredFile
from swapmeet_registry.names import AdapterName
from swapmeet_registry.provenance import Provenance
from swapmeet_registry.stores import hub_errors as patience
from swapmeet_registry.stores.hub_card import card
from swapmeet_registry.stores.hub_errors import endpoint, hub_errors, patiently
from swapmeet_registry.stores.hub_names import adapter_name, repository_name
from swapmeet_registry.stores.protocol import CHUNK, Stored, verified
from swapmeet_registry.version import Version

HEAD, MANIFEST, OWN_README = ".swapmeet/head.json", ".swapmeet/manifest.json", ".swapmeet/README.md"
CARD = "README.md"
BRANCH = "main"
SMALL = 8 << 20
"""Bytes up to which a file is held in memory, and fetched without being asked about first."""
TIMEOUT = 60.0
"""Seconds without any byte until a download is given up."""
VISIBILITIES = ("private", "public", "gated")

_log = logging.getLogger(__name__)


class HubBackend:
    """An organization's repositories; which one is an adapter's, `hub_names` says.

    Address and token are those of huggingface_hub: HF_ENDPOINT, HF_TOKEN, or what `hf auth login` stored.

    Args:
        organization: whose repositories.
        visibility: of repositories that are made: `private`, `public`, or `gated` (public to those who are let in).
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
        asked = dict(parse_qsl(parts.query, keep_blank_values=True))
        visibility = asked.pop("visibility", "private")
        if "@" in parts.netloc:
            raise InvalidName("An address of a Hub holds no token. Write hf://ORGANIZATION, and set HF_TOKEN.")
        if asked or visibility not in VISIBILITIES or parts.path.strip("/") or not _is_organization(parts.netloc):
            raise InvalidName(
                f"{url!r} is not a registry. Write hf://ORGANIZATION, with ?visibility=public or ?visibility=gated "
                "where new repositories should not be private."
            )
        return cls(parts.netloc, visibility)

    @property
    def url(self) -> str:
        """`hf://ORGANIZATION`."""
        return f"hf://{self.organization}" + (f"?visibility={self.visibility}" if self.visibility != "private" else "")

    def names(self) -> list[str]:
        """See `Backend`."""
        with hub_errors(self.organization):
            models = list(self._api.list_models(author=self.organization, expand=["siblings"]))
        found = [self._name_in(model.id) for model in models if HEAD in _files(model)]
        return sorted(str(name) for name in found if name is not None)

    def head(self, name: AdapterName) -> Stored | None:
        """See `Backend`."""
        return self._head(self.repository(name))

    def stage(self, name: AdapterName, manifest: Manifest, folder: Path) -> Staged:
        """See `Backend`. Uploads the large files, and makes the repository if there is none."""
        repository = self.repository(name)
        sources = {file.path: _source(folder / file.path, file) for file in manifest.files}
        with hub_errors(repository):
            try:
                self._upload(repository, _additions(manifest, sources))
            except hub.RepositoryNotFoundError:
                self._create(repository)
                reached("hub.created")
                self._upload(repository, _additions(manifest, sources))
        for file in manifest.files:
            for _ in verified(sources[file.path], file.sha256):  # the upload's client does not look again
                pass
        reached("hub.uploaded")
        return Staged(manifest, sources)

    def swap(self, name: AdapterName, head: Head, expected: str | None, staged: Staged | None = None) -> str:
        """See `Backend`; the tag is the commit that the branch is at."""
        repository, nonce = self.repository(name), uuid4().hex
        with hub_errors(repository):
            parent = expected or self._unclaimed(repository)
            files: dict[str, bytes | Path] = {HEAD: head.encode()}
            title, about, gone = f"Aliases and notes of {name}", "", frozenset[str]()
            if staged is not None:
                record = head.versions[-1]
                self._require_room(repository, head, parent)
                files |= _published(staged, repository, record.version)
                gone = self._left_behind(repository, parent, files)
                title, about = f"Version {record.version} of {name}", record.digest
            for pause in patience.PAUSES:
                reached("hub.before_commit")
                commit = self._commit(repository, files, gone, parent, title, f"{about}\n{nonce}".strip(), pause)
                if commit is not None:
                    reached("hub.committed")
                    return commit
        raise StoreError(f"The Hub keeps failing to take a commit to {repository}. Try again later.")

    def settle(self, name: AdapterName, head: Head) -> None:
        """See `Backend`: sets the tags of versions that have none."""
        repository = self.repository(name)
        try:
            with hub_errors(repository):
                self._tag(repository, head.versions)
        except StoreError as error:
            _log.warning(f"The newest version in {repository} has no tag yet; the next publish sets it. {error}")

    def manifest(self, version: Version) -> bytes | None:
        """See `Backend`."""
        return self._small(version, MANIFEST)

    def blob(self, version: Version, file: StoredFile) -> Iterator[bytes] | None:
        """See `Backend`. A large file that the Hub itself lists with another SHA-256 is not fetched."""
        path = _path(file)
        if file.size <= SMALL:
            data = self._small(version, path)
            return None if data is None else iter([data])
        repository = self.repository(AdapterName.parse(version.name))
        with hub_errors(repository):
            revision = self._revision(repository, version)
            info = patiently(lambda: self._api.get_paths_info(repository, [path], revision=revision))
        if not info:
            return None
        listed: Any = info[0]
        if listed.lfs is not None and listed.lfs.sha256 != file.sha256:
            found = f"{listed.size} bytes with sha256:{listed.lfs.sha256}"
            raise damaged(version, file, self.place(version), found)
        return self._pieces(repository, revision, path)

    def place(self, version: Version) -> str:
        """See `Backend`."""
        repository = self.repository(AdapterName.parse(version.name))
        return f"the tag v{version.version} of {repository} at {endpoint()}"

    def absence(self, name: AdapterName) -> str:
        """See `Backend`."""
        repository = self.repository(name)
        try:
            with hub_errors(repository):
                patiently(lambda: self._api.model_info(repository))
        except StoreError:
            return (
                f"Check its name, and set HF_TOKEN to one that may read {repository} at {endpoint()}: what is private "
                "looks as if it were missing."
            )
        return (
            f"The repository {repository} at {endpoint()} is there, but Swapmeet did not publish it: it has no {HEAD}. "
            "Push to it to take it over, or load it with PEFT."
        )

    def repository(self, name: AdapterName) -> str:
        """`ORGANIZATION/NAME` of an adapter's repository."""
        return f"{self.organization}/{repository_name(self.organization, name)}"

    # --- reading

    def _head(self, repository: str) -> Stored | None:
        with hub_errors(repository):
            try:
                answer = patiently(lambda: self._get(repository, BRANCH, HEAD))
            except (hub.EntryNotFoundError, hub.RevisionNotFoundError):
                return None
            except hub.GatedRepoError:
                raise
            except hub.RepositoryNotFoundError:
                return None
        for each in (*answer.history, answer):
            if commit := each.headers.get("X-Repo-Commit"):
                return Stored(answer.content, commit)
        raise StoreError(f"{endpoint()} does not say which commit it serves. Set HF_ENDPOINT to a Hub.")

    def _small(self, version: Version, path: str) -> bytes | None:
        repository = self.repository(AdapterName.parse(version.name))
        with hub_errors(repository):
            try:
                return bytes(patiently(lambda: self._get(repository, f"v{version.version}", path)).content)
            except hub.EntryNotFoundError:
                return None
            except hub.RevisionNotFoundError:
                pass  # its publisher died before the tag, and nobody published since: it is on the branch
            try:
                return bytes(patiently(lambda: self._get(repository, BRANCH, path)).content)
            except hub.EntryNotFoundError:
                return None

    def _revision(self, repository: str, version: Version) -> str:
        """Where a version's files are: at its tag, or on the branch where its publisher died before the tag."""
        refs = patiently(lambda: self._api.list_repo_refs(repository))
        tag = f"v{version.version}"
        return tag if any(ref.name == tag for ref in refs.tags) else BRANCH

    def _get(self, repository: str, revision: str, path: str) -> Any:
        address = hf_hub_url(repository, path, revision=revision, endpoint=endpoint())
        answer = get_session().get(address, headers=_headers(), timeout=TIMEOUT)
        hf_raise_for_status(answer)
        return answer

    def _pieces(self, repository: str, revision: str, path: str) -> Iterator[bytes]:
        """A file's bytes; a download that breaks off goes on where it was, as long as it gets further."""
        offset, pauses = 0, iter(patience.PAUSES)
        while True:
            with hub_errors(repository):
                try:
                    with self._stream(repository, revision, path, offset) as answer:
                        for chunk in answer.iter_bytes(CHUNK):
                            offset += len(chunk)
                            yield chunk
                    return
                except patience.UNCERTAIN as error:
                    wait = patience.waiting(error, next(pauses, patience.LONGEST_PAUSE + 1))
                    if wait is None or wait > patience.LONGEST_PAUSE:
                        raise
            time.sleep(wait)

    @contextmanager
    def _stream(self, repository: str, revision: str, path: str, offset: int) -> Iterator[Any]:
        address = hf_hub_url(repository, path, revision=revision, endpoint=endpoint())
        headers = _headers() | ({"Range": f"bytes={offset}-"} if offset else {})
        with get_session().stream("GET", address, headers=headers, timeout=TIMEOUT) as answer:
            if answer.status_code >= 400:
                answer.read()
            hf_raise_for_status(answer)
            if offset and answer.status_code != 206:
                raise StoreError(f"{endpoint()} can not go on with a download of {repository}. Try again.")
            yield answer

    def _name_in(self, repository: str) -> AdapterName | None:
        """The adapter in a repository that has a head; None where it is not the one that belongs there."""
        short = repository.partition("/")[2]
        known = adapter_name(self.organization, short)
        if known is not None:
            return known
        stored = self._head(repository)
        try:
            name = AdapterName.parse(str(canonical.decode(stored.data)["adapter"])) if stored else None
        except (ValueError, KeyError):
            return None
        return name if name and repository_name(self.organization, name) == short else None

    # --- writing

    def _create(self, repository: str) -> None:
        gated = self.visibility == "gated"
        private = self.visibility != "public"  # gated too, until the gate is there
        patiently(lambda: self._api.create_repo(repository, private=private, exist_ok=True))
        if gated:
            patiently(lambda: self._api.update_repo_settings(repository, gated="manual", private=False))

    def _upload(self, repository: str, additions: list[CommitOperationAdd]) -> None:
        """Upload what goes up apart from the commit; whatever the branch's .gitignore says goes into the commit."""

        def upload() -> None:
            self._api.preupload_lfs_files(
                repository, additions, revision=BRANCH, gitignore_content="", free_memory=False
            )

        patiently(upload)

    def _unclaimed(self, repository: str) -> str:
        """The commit that a repository without a head is at."""
        info = patiently(lambda: self._api.model_info(repository, revision=BRANCH))
        if HEAD in _files(info):
            raise _overtaken(repository)
        return str(info.sha)

    def _require_room(self, repository: str, head: Head, parent: str) -> None:
        """Refuse where tags say that there were more versions than the head knows; set those that are missing."""
        refs = patiently(lambda: self._api.list_repo_refs(repository))
        if parent not in [branch.target_commit for branch in refs.branches if branch.name == BRANCH]:
            raise _overtaken(repository)
        new = head.versions[-1].version
        taken = [tag.name for tag in refs.tags if tag.name[:1] == "v" and tag.name[1:].isdecimal()]
        ahead = sorted((tag for tag in taken if int(tag[1:]) >= new), key=lambda tag: int(tag[1:]))
        if ahead:
            raise Corrupt(
                f"{repository} has the tag {ahead[0]}, and its branch {BRANCH} knows of {new - 1} versions only: "
                "somebody moved the branch back, or made the tag. Put the branch right, or delete the tag."
            )
        self._tag(repository, head.versions[:-1], frozenset(taken))

    def _tag(self, repository: str, versions: tuple[Record, ...], known: frozenset[str] | None = None) -> None:
        """Tag the commits of versions that have no tag yet."""
        if known is None:
            refs = patiently(lambda: self._api.list_repo_refs(repository))
            known = frozenset(tag.name for tag in refs.tags)
        missing = {record.digest: record.version for record in versions if f"v{record.version}" not in known}
        for commit in self._commits(repository) if missing else ():
            number = missing.pop(commit["message"].partition("\n")[0], None)
            if number is not None:
                self._set_tag(repository, f"v{number}", commit["id"])
            if not missing:
                return

    def _set_tag(self, repository: str, tag: str, commit: str) -> None:
        patiently(lambda: self._api.create_tag(repository, tag=tag, revision=commit, exist_ok=True))
        reached("hub.tagged")

    def _left_behind(self, repository: str, parent: str, files: Mapping[str, object]) -> frozenset[str]:
        """What of the parent commit's files is not of the new version: all but hidden files that are not ours."""
        info = patiently(lambda: self._api.model_info(repository, revision=parent))
        ours = (path for path in _files(info) if not path.startswith(".") or path.startswith(".swapmeet/"))
        return frozenset(ours) - files.keys()

    def _commit(
        self,
        repository: str,
        files: Mapping[str, bytes | Path],
        gone: frozenset[str],
        parent: str,
        title: str,
        about: str,
        pause: float,
    ) -> str | None:
        """The new commit, or None where it did not take place and may be tried again, after a pause."""
        additions = [CommitOperationAdd(path, source) for path, source in sorted(files.items())]
        self._upload(repository, additions)
        try:
            done = self._api.create_commit(
                repository,
                [*additions, *(CommitOperationDelete(path, is_folder=False) for path in sorted(gone))],
                commit_message=title,
                commit_description=about,
                revision=BRANCH,
                parent_commit=parent,
            )
            return str(done.oid)
        except patience.UNCERTAIN as error:
            if not patience.undecided(error):
                raise
            landed = self._landed(repository, about, parent)
            if landed is not None:
                return landed
            wait = patience.waiting(error, pause)
            if wait is None and patience.status(error) == 429:  # type: ignore[arg-type] # only answers have no wait
                raise
        time.sleep(pause if wait is None else wait)
        return None

    def _landed(self, repository: str, about: str, parent: str) -> str | None:
        """The commit with this description, if there is one after the parent; None if nothing is.

        Raises:
            Conflict: there is something else.
        """
        others = False
        for commit in self._commits(repository):
            if commit["message"].strip() == about:
                return str(commit["id"])
            if commit["id"] == parent:
                break
            others = True
        if others:
            raise _overtaken(repository)
        return None

    def _commits(self, repository: str) -> Iterator[dict[str, Any]]:
        """The branch's commits, newest first, as far as they are asked for."""
        address = f"{endpoint()}/api/models/{repository}/commits/{BRANCH}"
        yield from paginate(address, params={}, headers=build_hf_headers())

    @cached_property
    def _api(self) -> HfApi:
        return HfApi(endpoint=endpoint(), library_name="swapmeet")

    def __getstate__(self) -> dict[str, Any]:
        return {"organization": self.organization, "visibility": self.visibility}


def _is_organization(text: str) -> bool:
    return text.replace("-", "a").replace("_", "a").replace(".", "a").isalnum() and text.isascii() and len(text) <= 96


def _headers() -> dict[str, str]:
    return build_hf_headers(library_name="swapmeet") | {"Accept-Encoding": "identity"}


def _files(model: Any) -> list[str]:
    return [file.rfilename for file in model.siblings or ()]


def _path(file: StoredFile) -> str:
    return OWN_README if file.path == CARD else file.path


def _source(path: Path, file: StoredFile) -> bytes | Path:
    """A small file's checked bytes, so that nothing changes any more; a large file stays where it is."""
    if file.size > SMALL:
        return path
    return b"".join(verified(path, file.sha256))


def _additions(manifest: Manifest, sources: Mapping[str, bytes | Path]) -> list[CommitOperationAdd]:
    additions = []
    for file in manifest.files:
        addition = CommitOperationAdd(_path(file), sources[file.path])
        addition.upload_info.sha256 = bytes.fromhex(file.sha256)
        additions.append(addition)
    return additions


def _published(staged: Staged, repository: str, version: int) -> dict[str, bytes | Path]:
    """All files of a version's commit but the head."""
    manifest, sources = staged.manifest, staged.sources
    config, readme = sources["adapter_config.json"], sources.get(CARD)
    text = card(manifest, repository, version, _bytes(config), None if readme is None else _bytes(readme))
    return {
        **{_path(file): sources[file.path] for file in manifest.files},
        MANIFEST: manifest.encode(),
        Provenance.FILE: manifest.provenance().encode(),
        CARD: text.encode(),
    }


def _bytes(source: bytes | Path) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def _overtaken(repository: str) -> Conflict:
    return Conflict(f"Somebody else committed to {repository} first. Read it again.")
