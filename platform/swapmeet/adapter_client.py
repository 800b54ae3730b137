"""A server's registry, used as `swapmeet_registry.Registry` is; what is pulled is checked here, byte for byte."""

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from swapmeet.errors import ApiError
from swapmeet.following import Tell, patiently, silent
from swapmeet.uploading import Watch, unwatched
from swapmeet_registry import (
    AdapterName,
    Fingerprint,
    Listing,
    Manifest,
    Reference,
    StoredFile,
    Version,
    canonical,
)
from swapmeet_registry.admission.adapter_folder import AdapterFolder, open_folder
from swapmeet_registry.copies.pulling import receive
from swapmeet_registry.errors import Corrupt
from swapmeet_registry.fingerprint import require_fit
from swapmeet_registry.head import Visibility
from swapmeet_registry.names import LATEST
from swapmeet_registry.stores.files import os_errors
from swapmeet_registry.version import AliasMove

if TYPE_CHECKING:
    from swapmeet.client import Client


@dataclass(frozen=True)
class RemoteAdapters:
    """The adapters of a server, as far as its key may read and change them.

    Args:
        client: of the server.
        tell: is told that the server does not answer, and what a manifest's base lacks.
    """

    client: "Client"
    tell: Tell = silent

    def push(
        self,
        folder: Path,
        name: str,
        *,
        base: str,
        alias: str | None = None,
        license: str | None = None,  # noqa: A002 - the word of manifests and of the command line
        tags: Sequence[str] = (),
        run: str | None = None,
        watch: Watch = unwatched,
    ) -> Version:
        """Publish an adapter's folder as the next version of a name; goes on with an upload that was interrupted.

        Args:
            folder: what PEFT's `save_pretrained()` wrote.
            name: `TENANT/NAME`.
            base: by its name on the server, or the digest of its weights.
            alias: pointed to the new version in the same step.
            license: instead of the one in `swapmeet.json`.
            tags: instead of those in `swapmeet.json`.
            run: what made it; the same run again under the same name gives the version that was made first.
            watch: is told how many bytes the server has, and how many there are.

        Raises:
            ApiError: the server refused or did not answer.
            Refused: the folder can not be published.
            StoreError: it can not be read.
        """
        with os_errors(f"read {folder}"), open_folder(Path(folder)) as opened:
            files = _announced(opened)
        for notice in opened.notices:
            self.tell(notice)
        wanted: dict[str, Any] = {"base": base, "files": files, "tags": list(tags)}
        wanted |= {k: v for k, v in (("alias", alias), ("license", license), ("run", run)) if v is not None}
        place = f"{_path(AdapterName.parse(name))}/uploads"
        # The same folder again is the same upload for as long as it is under way, and the next version from then on.
        upload = self._begin(place, wanted, run or canonical.digest(canonical.encode(wanted)))
        if upload["status"] == "published" and run is None:
            upload = self._begin(place, wanted, secrets.token_hex(16))
        if upload["status"] != "published":
            self._send(f"{place}/{upload['id']}", Path(folder), upload, watch)
            upload = self._ask("POST", f"{place}/{upload['id']}/complete")
        return _version(self._ask("GET", f"{_path(AdapterName.parse(name))}/versions/{upload['digest']}"))

    def pull(self, ref: str, folder: Path, *, base: Fingerprint | None = None) -> Version:
        """Fetch a version into a folder, which appears whole or not at all; goes on where a pull was interrupted.

        A folder that holds the version already is left as it is, after one request.

        Raises:
            ApiError: the server refused or did not answer; there may be no such version.
            BaseMismatch: the adapter was trained on other weights.
            Corrupt: what came has not the digest that it should.
            Refused: the folder holds something else.
        """
        version, manifest = self._described(ref)
        if base is not None and (warning := require_fit(manifest.base, base, str(version))):
            self.tell(warning)
        place = f"{_path(AdapterName.parse(version.name))}/versions/{version.digest}/files"
        receive(manifest, Path(folder), partial(self._fetch, place))
        return version

    def resolve(self, ref: str) -> Version:
        """The version that a reference names."""
        return self._described(ref)[0]

    def manifest(self, version: Version) -> Manifest:
        """What a version consists of."""
        return self._described(version.pinned)[1]

    def show(self, name: str) -> Listing:
        """Everything under a name."""
        place = _path(AdapterName.parse(name))
        found = self._ask("GET", place)
        moves = self._ask("GET", f"{place}/history")["data"]
        return Listing(
            name=found["id"],
            versions=tuple(map(_version, found["versions"])),
            aliases=dict(found["aliases"]),
            history=tuple(AliasMove(move["alias"], move["version"], move["at"], move["by"]) for move in moves),
            visibility=found["visibility"],
            shared_with=tuple(found["shared_with"]),
        )

    def names(self, tenant: str | None = None) -> Iterator[str]:
        """The names that may be read, or a tenant's of them."""
        return (str(each["id"]) for each in self.client.listed("/v1/adapters", {"owner": tenant, "limit": 100}))

    def tag(self, name: str, alias: str, ref: str, expect: int | None = None) -> Version:
        """Point an alias to a version; see `Registry.tag`."""
        target = AdapterName.parse(name)
        body = {"version": _pick(Reference.within(target, ref)), "expect": expect}
        return _version(self._ask("PUT", f"{_path(target)}/aliases/{quote(alias, safe='')}", body))

    def yank(self, ref: str, reason: str) -> Version:
        """Withdraw a version; see `Registry.yank`."""
        return self._withdraw(ref, "yank", reason)

    def recall(self, ref: str, reason: str) -> Version:
        """Forbid a version to everybody; see `Registry.recall`."""
        return self._withdraw(ref, "recall", reason)

    def delete(self, ref: str, reason: str) -> Version:
        """Delete a version for good; see `Registry.delete`."""
        return self._withdraw(ref, "delete", reason)

    def share(self, name: str, visibility: Visibility, tenants: Sequence[str] = ()) -> Listing:
        """Say who may read an adapter; see `Registry.share`."""
        body = {"visibility": visibility, "tenants": list(tenants)}
        self._ask("PUT", f"{_path(AdapterName.parse(name))}/visibility", body)
        return self.show(name)

    def _withdraw(self, ref: str, how: Literal["yank", "recall", "delete"], reason: str) -> Version:
        reference = Reference.parse(ref)
        place = f"{_path(reference.name)}/versions/{quote(_pick(reference), safe='')}/{how}"
        return _version(self._ask("POST", place, {"reason": reason}))

    def _described(self, ref: str) -> tuple[Version, Manifest]:
        """A version and its manifest, which has the digest that it should."""
        reference = Reference.parse(ref)
        found = self._ask("GET", f"{_path(reference.name)}/versions/{quote(_pick(reference), safe='')}")
        version, data = _version(found), canonical.encode(found["manifest"])
        if canonical.digest(data) != version.digest or reference.digest not in (None, version.digest):
            raise Corrupt(
                f"The server gave a manifest for {ref} that has another digest. Ask its operator to verify it."
            )
        return version, Manifest.decode(data, f"The manifest of {version}")

    def _fetch(self, place: str, file: StoredFile, start: int) -> Iterator[bytes]:
        """A file's bytes from some byte on, also where the server goes away meanwhile."""
        at, parts = start, iter(tuple[bytes]())
        while at < file.size:
            chunk, parts = patiently(partial(self._next, f"{place}/{quote(file.path)}", at, parts), self.tell)
            if not chunk:
                return  # too little came, as whoever compares it will say
            at += len(chunk)
            yield chunk

    def _next(self, path: str, at: int, parts: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
        """The next piece, of an answer under way or, where that ended, of a new one."""
        chunk = next(parts, b"")
        if not chunk:
            parts = self.client.chunks(path, headers={"range": f"bytes={at}-"})
            chunk = next(parts, b"")
        return chunk, parts

    def _begin(self, place: str, wanted: dict[str, Any], key: str) -> dict[str, Any]:
        return patiently(lambda: self.client.call("POST", place, wanted, headers={"idempotency-key": key}), self.tell)

    def _send(self, place: str, folder: Path, upload: dict[str, Any], watch: Watch) -> None:
        """All parts that the server lacks."""
        size, step = int(upload["bytes"]), int(upload["part_size"])
        lacking = sum(min(step, file["size"] - at) for file in upload["files"] for at in file["missing"])
        for file in upload["files"]:
            with os_errors(f"read {folder / file['path']}"), (folder / file["path"]).open("rb") as stream:
                for at in file["missing"]:
                    stream.seek(at)
                    part = stream.read(min(step, file["size"] - at))
                    patiently(partial(self._put, f"{place}/files/{quote(file['path'])}", at, part), self.tell)
                    lacking -= len(part)
                    watch(size - lacking, size)

    def _put(self, place: str, at: int, part: bytes) -> dict[str, Any]:
        headers = {"x-content-sha256": hashlib.sha256(part).hexdigest()}
        return self.client.put(place, part, {"offset": at}, headers)

    def _ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        return patiently(lambda: self.client.call(method, path, body), self.tell)


def _announced(folder: AdapterFolder) -> list[dict[str, Any]]:
    """The files of an adapter's folder, with sizes and digests."""
    return [_measured(folder, name) for name in folder.files]


def _measured(folder: AdapterFolder, name: str) -> dict[str, Any]:
    with folder.open(name) as stream:
        digest = hashlib.sha256()
        for chunk in iter(partial(stream.read, 1 << 20), b""):
            digest.update(chunk)
        return {"path": name, "size": stream.tell(), "sha256": digest.hexdigest()}


def _path(name: AdapterName) -> str:
    return f"/v1/adapters/{name}"


def _pick(reference: Reference) -> str:
    """What of a reference follows the name."""
    if reference.version is not None:
        return str(reference.version)
    return reference.digest or reference.alias or LATEST


def _version(found: dict[str, Any]) -> Version:
    try:
        return Version(
            found["name"],
            found["version"],
            found["digest"],
            found["created_at"],
            found["yanked"] is not None,
            found["yanked"],
            found["recalled"],
            found["deleted"],
        )
    except (KeyError, TypeError) as error:
        raise ApiError("The server is of another version of Swapmeet. Use the client of its version.") from error
