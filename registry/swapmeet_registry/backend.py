"""Where adapters are kept, as the registry sees it: heads that are swapped, and versions' files that are not.

Publishing is one step here, because a place may have a better way to do it than to write one object after the
other: a Hub takes all files of a version and the new head in one commit. A store of keys is such a place by
`store_backend`; `hf://` addresses are `stores.hub.HubBackend`. `tests/registry/test_backend_contract.py` holds all of
them to what stands here.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self
from urllib.parse import urlsplit

from swapmeet_registry.errors import InvalidName, StoreError
from swapmeet_registry.head import Head
from swapmeet_registry.manifest import Manifest, StoredFile
from swapmeet_registry.names import AdapterName
from swapmeet_registry.stores import Store, Stored, open_store
from swapmeet_registry.stores.opening import split
from swapmeet_registry.upkeep.intents import Declared
from swapmeet_registry.version import Version

MAX_SIGNERS = 1000
KEY_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class LargeFile:
    """A file that stays where it is until it is sent, with the hex SHA-256 that it must have."""

    path: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class Staged:
    """A version whose files are where they must be, but which no head names yet.

    As a context it is given up, or done, at the end. `sources` are the files that still have to go with the head, if
    the place wants them: names and contents; `intent` keeps those that are there already from being collected; `heads`
    is the name's head if it was read meanwhile, None where there was none.
    """

    manifest: Manifest
    sources: Mapping[str, bytes | LargeFile] = field(default_factory=dict)
    intent: Declared | None = None
    heads: tuple[Stored | None, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.intent is not None:
            self.intent.end()


@dataclass(frozen=True, slots=True)
class Notes:
    """What others have made about a version: signatures by their keys' ids, and the report on its weights."""

    signatures: Mapping[str, bytes] = field(default_factory=dict)
    report: bytes | None = None


NO_NOTES = Notes()


class Source(Protocol):
    """Heads and versions by adapter name, to be read.

    Bytes are given as found: whoever asks compares them with their digests.

    Attributes:
        url: where it is.
    """

    @property
    def url(self) -> str:
        """Where it is."""
        ...

    def names(self, tenant: str | None = None) -> list[str]:
        """All names that have a head, or those of one tenant, sorted."""
        ...

    def head(self, name: AdapterName) -> Stored | None:
        """A name's head, and the tag that `swap` expects; or None. Never older than a finished swap."""
        ...

    def manifest(self, version: Version) -> bytes | None:
        """A version's manifest, or None where it is gone."""
        ...

    def blob(self, version: Version, file: StoredFile) -> Iterator[bytes] | None:
        """A file of a version in pieces, or None where it is gone."""
        ...

    def stated(self, version: Version, file: StoredFile) -> tuple[int, str] | None:
        """Size and hex SHA-256 of a version's file as the place itself checked them, where it does: without reading."""
        ...

    def signature(self, version: Version, key: str, limit: int) -> bytes | None:
        """A version's signature by the key with this id, or None where there is none; no more than `limit` bytes."""
        ...

    def signers(self, version: Version) -> list[str]:
        """The ids of keys that signatures of a version are kept of, sorted; no more than `MAX_SIGNERS`."""
        ...

    def signed(self) -> Iterator[tuple[str, str]]:
        """All signatures that are kept, sorted: the version's digest and the key's id, without a request for each."""
        ...

    def report(self, version: Version, limit: int) -> bytes | None:
        """The report on a version's weights, or None where none is kept; no more than `limit` bytes."""
        ...

    def place(self, version: Version) -> str:
        """Where a version is, for messages: what to look at if it is damaged."""
        ...

    def absence(self, name: AdapterName) -> str:
        """What to do about a name that has no head, for messages: one sentence or two."""
        ...


class Backend(Source, Protocol):
    """A source that is written, too.

    Can be pickled, and used by several threads. Whatever fails raises a `StoreError`, and a failed write leaves the old
    state.

    Attributes:
        url: what `open_backend` opens again.
    """

    def stage(self, name: AdapterName, manifest: Manifest, folder: Path, notes: Notes = NO_NOTES) -> Staged:
        """Bring a version's files near: after this a swap needs little time. Nobody sees anything.

        Args:
            name: the adapter's.
            manifest: the version's.
            folder: its files.
            notes: what is to be there by the time that the version is. A Hub keeps no reports.

        Raises:
            Refused: a file is not what it was when its digest was taken.
        """
        ...

    def swap(self, name: AdapterName, head: Head, expected: str | None, staged: Staged | None = None) -> str:
        """Write a head if its tag is `expected`, or, with None, if there is none; with it the staged version, its last.

        Exactly one of several concurrent writers with the same expectation wins.

        Returns:
            The new tag.

        Raises:
            Conflict: somebody else's write came first, or may have; a nonce in the head tells.
        """
        ...

    def settle(self, name: AdapterName, head: Head) -> None:
        """Finish what a publisher may have left undone after its swap. Once more does nothing."""
        ...

    def put_signature(self, version: Version, key: str, bundle: bytes) -> None:
        """Keep a signature of a published version, in the place of the key's earlier one."""
        ...


def open_backend(url: str | Store) -> Backend:
    """What is behind `file:///DIR`, `s3://BUCKET/PREFIX` or `hf://ORGANIZATION`. Nothing is read or written yet.

    Raises:
        InvalidName: the URL is of no known kind.
        StoreError: HF_ENDPOINT is no address.
    """
    from swapmeet_registry.store_backend import StoreBackend  # which imports this

    if not isinstance(url, str):
        return StoreBackend(url)
    scheme = split(url).scheme
    if scheme == "hf":
        _require_endpoint(os.environ.get("HF_ENDPOINT", ""))
        from swapmeet_registry.stores.hub import HubBackend  # huggingface_hub takes long to import

        return HubBackend.open(url)
    if scheme not in ("file", "s3"):
        raise InvalidName(f"{url!r} is not a registry. Write file:///FOLDER, s3://BUCKET/PREFIX or hf://ORGANIZATION.")
    return StoreBackend(open_store(url))


def _require_endpoint(address: str) -> None:
    """Refuse what huggingface_hub could not be imported with."""
    try:
        _ = urlsplit(address).port
    except ValueError as error:
        raise StoreError(f"HF_ENDPOINT is {address!r}, which is no address ({error}). Set it right.") from error
