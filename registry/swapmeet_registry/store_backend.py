"""Adapters in a store of keys: blobs and manifests under their SHA-256, and a head for each name."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

from swapmeet_registry.backend import KEY_ID, MAX_SIGNERS, NO_NOTES, Notes, Staged
from swapmeet_registry.fault import reached
from swapmeet_registry.head import Head
from swapmeet_registry.manifest import Manifest, StoredFile
from swapmeet_registry.names import AdapterName
from swapmeet_registry.stores import Store, Stored
from swapmeet_registry.upkeep.intents import Intents
from swapmeet_registry.version import Version

HEADS, SIGNATURES, SUFFIX = "heads/", "signatures/", ".json"
_SIGNATURE = re.compile(rf"{SIGNATURES}sha256/([0-9a-f]{{64}})/({KEY_ID.pattern}){re.escape(SUFFIX)}")
SMALL = 1 << 20
"""Bytes of a file that is written beside others."""


class StoreBackend:
    """Adapters in a store of keys.

        blobs/sha256/HEX            the files' bytes
        manifests/sha256/HEX        one version each
        reports/sha256/HEX.json     statistics of its weights
        heads/TENANT/NAME.json      the versions and aliases of a name
        signatures/sha256/HEX/KEY.json      who signed the version with this manifest

    A publish writes them in this order, or blobs and manifest at once (`at_once`), within an intent (`intents`) that
    keeps them from being collected. Until the head is written nobody sees anything; from then on everything that it
    names is there, but for the report, which may come a moment later: it can be computed again.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def url(self) -> str:
        """The store's."""
        return self.store.url

    def names(self, tenant: str | None = None) -> list[str]:
        """See `Backend`."""
        return sorted(map(name_of, self.store.list(HEADS if tenant is None else f"{HEADS}{tenant}/")))

    def head(self, name: AdapterName) -> Stored | None:
        """See `Backend`."""
        return self.store.get(head_key(name))

    def stage(
        self,
        name: AdapterName,
        manifest: Manifest,
        folder: Path,
        notes: Notes = NO_NOTES,
    ) -> Staged:
        """See `Backend`. Writes even what is there: a damaged blob is mended, none taken on trust."""
        signatures = {signature_key(manifest.digest, key): bundle for key, bundle in notes.signatures.items()}
        own = (manifest_key(manifest.digest), report_key(manifest.digest))
        intent = Intents(self.store).declare((*map(blob_key, manifest.files), *own, *signatures))
        try:
            heads = self._write(name, manifest, folder)
            for key, bundle in signatures.items():
                self._put(key, bundle)
            if notes.report is not None:
                self._put(report_key(manifest.digest), notes.report)
        except BaseException:
            intent.end()
            raise
        return Staged(manifest, intent=intent, heads=heads)

    @property
    def at_once(self) -> int:
        """How many objects are worth being written at once: more than one where each costs a way there and back."""
        return getattr(self.store, "AT_ONCE", 1)

    def _write(self, name: AdapterName, manifest: Manifest, folder: Path) -> tuple[Stored | None, ...]:
        """Write blobs and manifest: small ones beside each other and beside the large, where that is worth it.

        Returns:
            The name's head, where it was worth reading it meanwhile.
        """
        small = [file for file in manifest.files if file.size <= SMALL] if self.at_once > 1 else []

        def put(file: StoredFile) -> None:
            self.store.put(blob_key(file), folder / file.path, file.sha256)
            reached("push.blob")

        digest = manifest.digest
        describe = partial(self.store.put, manifest_key(digest), manifest.encode(), digest.removeprefix("sha256:"))
        with ThreadPoolExecutor(self.at_once, "publish") as pool:
            beside = [pool.submit(put, file) for file in small]
            described = pool.submit(describe) if self.at_once > 1 else None
            head = pool.submit(self.head, name) if self.at_once > 1 else None
            for file in manifest.files:
                if file not in small:
                    put(file)
            for written in beside:
                written.result()
            reached("push.blobs")
            described.result() if described else describe()
            reached("push.manifest")
            return (head.result(),) if head else ()

    def swap(self, name: AdapterName, head: Head, expected: str | None, staged: Staged | None = None) -> str:
        """See `Backend`."""
        if staged is not None and staged.intent is not None:
            staged.intent.require_young()
        return self.store.swap(head_key(name), head.encode(), expected)

    def settle(self, name: AdapterName, head: Head) -> None:
        """See `Backend`: the head is the last to be written."""

    def manifest(self, version: Version) -> bytes | None:
        """See `Backend`."""
        stored = self.store.get(manifest_key(version.digest))
        return stored.data if stored else None

    def blob(self, version: Version, file: StoredFile) -> Iterator[bytes] | None:  # noqa: ARG002
        """See `Backend`."""
        return self.store.stream(blob_key(file))

    def stated(self, version: Version, file: StoredFile) -> tuple[int, str] | None:  # noqa: ARG002
        """See `Backend`: stores know no digests."""
        return None

    def signature(self, version: Version, key: str, limit: int) -> bytes | None:
        """See `Backend`."""
        return self._up_to(limit, signature_key(version.digest, key))

    def put_signature(self, version: Version, key: str, bundle: bytes) -> None:
        """See `Backend`."""
        self._put(signature_key(version.digest, key), bundle)

    def signers(self, version: Version) -> list[str]:
        """See `Backend`."""
        prefix = signature_key(version.digest, "").removesuffix(SUFFIX)
        keys = (key.removeprefix(prefix).removesuffix(SUFFIX) for key in self.store.list(prefix))
        return list(islice(filter(KEY_ID.fullmatch, keys), MAX_SIGNERS))

    def signed(self) -> Iterator[tuple[str, str]]:
        """See `Backend`."""
        for stored in self.store.list(SIGNATURES):
            if (parts := _SIGNATURE.fullmatch(stored)) is not None:
                yield f"sha256:{parts[1]}", parts[2]

    def report(self, version: Version, limit: int) -> bytes | None:
        """See `Backend`."""
        return self._up_to(limit, report_key(version.digest))

    def place(self, version: Version) -> str:  # noqa: ARG002
        """See `Backend`."""
        return self.store.url

    def absence(self, name: AdapterName) -> str:  # noqa: ARG002
        """See `Backend`."""
        return "Check its name."

    def _put(self, key: str, data: bytes) -> None:
        self.store.put(key, data, hashlib.sha256(data).hexdigest())

    def _up_to(self, limit: int, key: str) -> bytes | None:
        stream = self.store.stream(key)
        return None if stream is None else _joined(limit, stream)


def head_key(name: AdapterName) -> str:
    """Where a name's head is."""
    return f"{HEADS}{name}{SUFFIX}"


def name_of(key: str) -> str:
    """The name whose head is under a key of a listing."""
    return key.removeprefix(HEADS).removesuffix(SUFFIX)


def manifest_key(digest: str) -> str:
    """Where the manifest with a digest is."""
    return f"manifests/{digest.replace(':', '/')}"


def signature_key(digest: str, key: str) -> str:
    """Where the signature of the version with a digest is, by the key with an id."""
    return f"{SIGNATURES}{digest.replace(':', '/')}/{key}{SUFFIX}"


def report_key(digest: str) -> str:
    """Where the report on the version with a digest is."""
    return f"reports/{digest.replace(':', '/')}{SUFFIX}"


def blob_key(file: StoredFile) -> str:
    """Where a file's bytes are."""
    return f"blobs/sha256/{file.sha256}"


def _joined(limit: int, stream: Iterable[bytes]) -> bytes:
    data = b""
    for chunk in stream:
        data += chunk
        if len(data) >= limit:
            break
    return data[:limit]
