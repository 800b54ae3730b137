"""What is read of one repository of a Hub, at a branch, a tag or a commit.

Address and token are those of huggingface_hub: HF_ENDPOINT, HF_TOKEN, or what `hf auth login` stored.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import HfApi, get_session, hf_hub_url
from huggingface_hub import errors as hub
from huggingface_hub.utils import (  # type: ignore[attr-defined] # its names are loaded when they are asked for
    build_hf_headers,
    hf_raise_for_status,
    paginate,
)

from swapmeet_registry.errors import StoreError
from swapmeet_registry.stores import hub_errors as patience
from swapmeet_registry.stores.hub_errors import endpoint, hub_errors, patiently
from swapmeet_registry.stores.protocol import CHUNK, Stored

BRANCH = "main"
MAX_GET = 64 << 20
"""Bytes of a file that is read into memory; more says only that it is not what it should be."""
TIMEOUT = 60.0
"""Seconds without any byte until a download is given up."""


class HubFiles:
    """A model repository, `OWNER/NAME`, to be read; one that is missing, or may not be seen, raises when it is used."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._api = HfApi(endpoint=endpoint(), library_name="swapmeet")

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


def _headers() -> dict[str, str]:
    return {**build_hf_headers(library_name="swapmeet"), "Accept-Encoding": "identity"}
