"""One repository of a Hub: read as `hub_files`, written by commits that name their parent."""

import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from uuid import uuid4

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants
from huggingface_hub import errors as hub
from huggingface_hub.utils import (  # type: ignore[attr-defined] # its names are loaded when they are asked for
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from swapmeet_registry.backend import LargeFile
from swapmeet_registry.errors import Conflict, StoreError
from swapmeet_registry.fault import reached
from swapmeet_registry.stores import hub_errors as patience
from swapmeet_registry.stores.hub_errors import endpoint, hub_errors, patiently
from swapmeet_registry.stores.hub_files import BRANCH, HubFiles

NONCE = ".swapmeet/nonce"


class HubRepository(HubFiles):
    """A model repository, `OWNER/NAME`; one that is missing, or may not be seen, raises when it is used."""

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
