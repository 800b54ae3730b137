"""One repository of a Hub: read at a revision, written by commits that name their parent.

Address and token are those of huggingface_hub: HF_ENDPOINT, HF_TOKEN, or what `hf auth login` stored.
"""

import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_session, hf_hub_url
from huggingface_hub import errors as hub
from huggingface_hub.utils import (  # type: ignore[attr-defined] # its names are loaded when they are asked for
    are_progress_bars_disabled,
    build_hf_headers,
    disable_progress_bars,
    enable_progress_bars,
    hf_raise_for_status,
    paginate,
)

from swapmeet_registry.backend import LargeFile
from swapmeet_registry.errors import Conflict, StoreError
from swapmeet_registry.fault import reached
from swapmeet_registry.stores import hub_errors as patience
from swapmeet_registry.stores.hub_errors import endpoint, hub_errors, patiently
from swapmeet_registry.stores.protocol import CHUNK, Stored

BRANCH = "main"
NONCE = ".swapmeet/nonce"
MAX_GET = 64 << 20
"""Bytes of a file that is read into memory; more says only that it is not what it should be."""
TIMEOUT = 60.0
"""Seconds without any byte until a download is given up."""


class HubRepository:
    """A model repository, `OWNER/NAME`; one that is missing, or may not be seen, raises when it is used."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._api = HfApi(endpoint=endpoint(), library_name="swapmeet")

    # --- reading

    def get(self, revision: str, path: str) -> Stored | None:
        """A small file and the commit that it was read at, or None where there is no repository, revision or file.

        Of a file that is too large, what fits.

        Raises:
            StoreDenied: the repository may not be read.
        """
        with hub_errors(self.name):
            try:
                return patiently(lambda: self._fetch(revision, path))
            except hub.GatedRepoError:
                raise
            except (hub.EntryNotFoundError, hub.RevisionNotFoundError, hub.RepositoryNotFoundError):
                return None

    def refs(self) -> tuple[str | None, dict[str, str]]:
        """The branch's commit, and all tags with their commits, at one moment."""
        with hub_errors(self.name):
            refs = patiently(lambda: self._api.list_repo_refs(self.name))
        tips = [branch.target_commit for branch in refs.branches if branch.name == BRANCH]
        return next(iter(tips), None), {tag.name: tag.target_commit for tag in refs.tags}

    def files(self, revision: str = BRANCH) -> tuple[str, frozenset[str]]:
        """A revision's commit, and the paths of its files."""
        with hub_errors(self.name):
            info = patiently(lambda: self._api.model_info(self.name, revision=revision))
        return str(info.sha), paths(info)

    def listed(self, revision: str, path: str) -> tuple[int, str | None] | None:
        """A file's size, and its SHA-256 if the Hub lists it, as it does for large files; None if it is not there."""
        with hub_errors(self.name):
            found: Any = patiently(lambda: self._api.get_paths_info(self.name, [path], revision=revision))
        return next(((file.size, file.lfs.sha256 if file.lfs else None) for file in found), None)

    def pieces(self, revision: str, path: str) -> Iterator[bytes]:
        """A file's bytes; a download that breaks off goes on where it was."""
        offset, pauses = 0, iter(patience.PAUSES)
        while True:
            with hub_errors(self.name):
                try:
                    with self._stream(revision, path, offset) as answer:
                        for chunk in answer.iter_bytes(CHUNK):
                            offset += len(chunk)
                            yield chunk
                    return
                except patience.UNCERTAIN as error:
                    pause = next(pauses, None)
                    wait = None if pause is None else patience.waiting(error, pause)
                    if wait is None:
                        raise
            time.sleep(wait)

    def commits(self) -> Iterator[dict[str, Any]]:
        """The branch's commits, newest first, as far as they are asked for."""
        address = f"{endpoint()}/api/models/{self.name}/commits/{BRANCH}"
        with hub_errors(self.name):
            yield from paginate(address, params={}, headers=build_hf_headers())

    # --- writing

    def create(self, visibility: str) -> None:
        """Make the repository, unless it is there; `gated` is private until it has its gate."""
        private = visibility != "public"
        with hub_errors(self.name):
            patiently(lambda: self._api.create_repo(self.name, private=private, exist_ok=True))
            if visibility == "gated":
                patiently(lambda: self._api.update_repo_settings(self.name, gated="manual", private=False))

    def upload(self, files: Mapping[str, bytes | LargeFile]) -> bool:
        """Upload what of some files goes up apart from a commit; whatever .gitignore says, they will be in it.

        Returns:
            False where there is no such repository.
        """
        with hub_errors(self.name), _bars(shown=sys.stderr.isatty()):
            return self._upload(_additions(files))

    def commit(
        self, files: Mapping[str, bytes | LargeFile], gone: Collection[str], parent: str, title: str, about: str = ""
    ) -> str:
        """Write and remove files on the branch, which must be at `parent`.

        Args:
            files: what to write, by path.
            gone: what to remove.
            parent: a commit.
            title: the commit's.
            about: the first line of its message; a nonce follows.

        Returns:
            The new commit.

        Raises:
            Conflict: the branch is elsewhere.
        """
        nonce = uuid4().hex
        message = f"{about}\n{nonce}".strip()
        files = {**files, NONCE: nonce.encode()}  # the client takes a commit that changes nothing for done
        for pause in patience.PAUSES:
            reached("hub.before_commit")
            with hub_errors(self.name), _bars(shown=False):  # nothing is left to upload
                commit = self._try_commit(files, gone, parent, title, message, pause)
            if commit is not None:
                reached("hub.committed")
                return commit
        raise StoreError(f"The Hub at {endpoint()} keeps failing to take a commit to {self.name}. Try again later.")

    def tag(self, tag: str, commit: str) -> None:
        """Set a tag, unless it is there."""
        with hub_errors(self.name):
            patiently(lambda: self._api.create_tag(self.name, tag=tag, revision=commit, exist_ok=True))
        reached("hub.tagged")

    def _try_commit(
        self,
        files: Mapping[str, bytes | LargeFile],
        gone: Collection[str],
        parent: str,
        title: str,
        message: str,
        pause: float,
    ) -> str | None:
        """The new commit, or None where it did not take place and may be tried again, after a pause."""
        additions = _additions(files)
        if not self._upload(additions):
            raise overtaken(self.name)
        try:
            done = self._api.create_commit(
                self.name,
                [*additions, *(CommitOperationDelete(path, is_folder=False) for path in sorted(gone))],
                commit_message=title,
                commit_description=message,
                revision=BRANCH,
                parent_commit=parent,
            )
            return str(done.oid)
        except patience.UNCERTAIN as error:
            if not patience.undecided(error):
                raise
            landed = self._landed(message, parent)
            if landed is not None:
                return landed
            wait = patience.waiting(error, pause)
            if wait is None and isinstance(error, hub.HfHubHTTPError) and patience.status(error) == 429:
                raise
        time.sleep(pause if wait is None else wait)
        return None

    def _upload(self, additions: list[CommitOperationAdd]) -> bool:
        def send() -> None:
            self._api.preupload_lfs_files(
                self.name, additions, revision=BRANCH, gitignore_content="", free_memory=False
            )

        try:
            patiently(send)
        except hub.RepositoryNotFoundError:
            return False
        return True

    def _landed(self, message: str, parent: str) -> str | None:
        """The commit with this message, if there is one after the parent; None if nothing is.

        Raises:
            Conflict: there is something else.
        """
        others = False
        for commit in self.commits():
            if commit["message"].strip() == message:
                return str(commit["id"])
            if commit["id"] == parent:
                break
            others = True
        if others:
            raise overtaken(self.name)
        return None

    def _fetch(self, revision: str, path: str) -> Stored:
        data = bytearray()
        with self._stream(revision, path, 0) as answer:
            for chunk in answer.iter_bytes(CHUNK):
                data += chunk
                if len(data) > MAX_GET:
                    break
            for each in (*answer.history, answer):
                if commit := each.headers.get("X-Repo-Commit"):
                    return Stored(bytes(data), commit)
        raise StoreError(f"{endpoint()} does not say which commit it serves. Set HF_ENDPOINT to a Hub.")

    @contextmanager
    def _stream(self, revision: str, path: str, offset: int) -> Iterator[Any]:
        address = hf_hub_url(self.name, path, revision=revision, endpoint=endpoint())
        headers = _headers() | ({"Range": f"bytes={offset}-"} if offset else {})
        with get_session().stream("GET", address, headers=headers, timeout=TIMEOUT) as answer:
            if answer.status_code >= 400:
                answer.read()
            hf_raise_for_status(answer)
            if offset and answer.status_code != 206:
                raise StoreError(f"{endpoint()} can not go on with a download from {self.name}. Try again.")
            yield answer


def list_repositories(owner: str) -> list[Any]:
    """An owner's models that the token may see, with the paths of their files."""
    with hub_errors(owner):
        return list(HfApi(endpoint=endpoint()).list_models(author=owner, expand=["siblings"]))


def paths(model: Any) -> frozenset[str]:
    """The paths of a model's files, as the Hub describes it."""
    return frozenset(file.rfilename for file in model.siblings or ())


def overtaken(repository: str) -> Conflict:
    """What is said to whoever built on a commit that is not the newest any more."""
    return Conflict(f"Somebody else committed to {repository} first. Read it again.")


def _additions(files: Mapping[str, bytes | LargeFile]) -> list[CommitOperationAdd]:
    """What to add, anew for each attempt: what one of them learns of the branch is of no use to the next."""
    additions = []
    for path, source in sorted(files.items()):
        addition = CommitOperationAdd(path, source.path if isinstance(source, LargeFile) else source)
        if isinstance(source, LargeFile):
            addition.upload_info.sha256 = bytes.fromhex(source.sha256)
        additions.append(addition)
    return additions


@contextmanager
def _bars(*, shown: bool) -> Iterator[None]:
    """Within it, huggingface_hub draws no bars, unless they are to be shown or its own setting says so."""
    if shown or are_progress_bars_disabled() or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _headers() -> dict[str, str]:
    return {**build_hf_headers(library_name="swapmeet"), "Accept-Encoding": "identity"}
