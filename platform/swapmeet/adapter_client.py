"""A server's registry, used as `swapmeet_registry.Registry` is; what is pulled is checked here, byte for byte."""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from swapmeet.adapter_upload import Upload
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
    Trust,
    Version,
    canonical,
)
from swapmeet_registry.copies.pulling import receive
from swapmeet_registry.errors import Corrupt
from swapmeet_registry.fingerprint import require_fit
from swapmeet_registry.head import Visibility
from swapmeet_registry.names import LATEST
from swapmeet_registry.recalls import Reached
from swapmeet_registry.signing import OFF
from swapmeet_registry.signing.signatures import Policy
from swapmeet_registry.version import AliasMove

if TYPE_CHECKING:
    from swapmeet.client import Client


@dataclass(frozen=True)
class RemoteAdapters:
    """The adapters of a server, as far as its key may read and change them.

    Args:
        client: of the server.
        tell: is told that the server does not answer, and what a manifest's base lacks.
        trust: whose signatures are asked for here, whatever the server asks for.
    """

    client: "Client"
    tell: Tell = silent
    trust: Trust = OFF

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
        target = AdapterName.parse(name)
        more = {"alias": alias, "license": license, "run": run}
        wanted = {"base": base, "tags": list(tags)} | {key: given for key, given in more.items() if given is not None}
        digest = Upload(self.client, self.tell, f"{_path(target)}/uploads").publish(Path(folder), wanted, watch)
        return _version(self._ask("GET", f"{_path(target)}/versions/{digest}"))

    def pull(self, ref: str, folder: Path, *, base: Fingerprint | None = None) -> Version:
        """Fetch a version into a folder, which appears whole or not at all; goes on where a pull was interrupted.

        A folder that holds the version already is left as it is, after one request.

        Raises:
            ApiError: the server refused or did not answer; there may be no such version.
            BaseMismatch: the adapter was trained on other weights.
            Corrupt: what came has not the digest that it should.
            Refused: the folder holds something else.
            SignatureInvalid: no trusted key signed it, and one is asked for; nothing was fetched.
        """
        version, manifest = self._described(ref)
        Policy(self, self.trust).require(version, manifest)
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

    def signature(self, version: Version, key: str, limit: int) -> bytes | None:
        """A version's signature by the key with this id, if there is one; no more than `limit` bytes."""
        place = f"{_path(AdapterName.parse(version.name))}/versions/{version.digest}/signatures/{key}"
        bundle = self._ask("GET", place)["bundle"]
        return None if bundle is None else base64.b64decode(bundle)[:limit]

    def show(self, name: str) -> Listing:
        """Everything under a name."""
        place = _path(AdapterName.parse(name))
        found = self._ask("GET", place)
        told = self._ask("GET", f"{place}/history")
        return Listing(
            name=found["id"],
            versions=tuple(map(_version, found["versions"])),
            aliases=dict(found["aliases"]),
            history=tuple(AliasMove(move["alias"], move["version"], move["at"], move["by"]) for move in told["data"]),
            visibility=found["visibility"],
            shared_with=tuple(found["shared_with"]),
            forgotten=told["forgotten"],
        )

    def advice(self, name: str) -> tuple[str, ...]:
        """What stands out of the weights of an adapter's latest version, for people to judge."""
        place = _path(AdapterName.parse(name))
        return tuple(map(str, self._ask("GET", place, query={"advice": "true"})["advice"]))

    def names(self, tenant: str | None = None) -> Iterator[str]:
        """The names that may be read, or a tenant's of them."""
        return (str(each["id"]) for each in self.client.listed("/v1/adapters", {"owner": tenant, "limit": 100}))

    def tag(self, name: str, alias: str, ref: str, expect: int | None = None, by: str | None = None) -> Version:  # noqa: ARG002
        """Point an alias to a version; see `Registry.tag`. Who does it the server knows by the key."""
        target = AdapterName.parse(name)
        body = {"version": _pick(Reference.within(target, ref)), "expect": expect}
        return _version(self._ask("PUT", _alias_path(target, alias), body))

    def untag(self, name: str, alias: str, expect: int | None = None, by: str | None = None) -> Listing:  # noqa: ARG002
        """Remove an alias; see `Registry.untag`, and `tag`."""
        self._ask("DELETE", _alias_path(AdapterName.parse(name), alias), query={"expect": expect})
        return self.show(name)

    def undo(self, name: str, alias: str, by: str | None = None) -> Listing:  # noqa: ARG002
        """Point an alias to where it pointed before its last move; see `Registry.undo`, and `tag`.

        Asked once: an undo whose answer was lost would be undone by the next.
        """
        self.client.call("POST", f"{_alias_path(AdapterName.parse(name), alias)}/undo")
        return self.show(name)

    def yank(self, ref: str, reason: str) -> Version:
        """Withdraw a version; see `Registry.yank`."""
        return self._withdraw(ref, "yank", reason)

    def recall(self, ref: str, reason: str) -> Version:
        """Forbid a version to everybody; see `Registry.recall`."""
        return self._withdraw(ref, "recall", reason)

    def delete(self, ref: str, reason: str) -> Version:
        """Delete a version for good; see `Registry.delete`."""
        return self._withdraw(ref, "delete", reason)

    def delete_all(self, name: str, reason: str) -> tuple[Version, ...]:
        """Delete every version of a name; see `Registry.delete_all`."""
        left = [version for version in self.show(name).versions if version.deleted is None]
        return tuple(self.delete(version.pinned, reason) for version in left)

    def reach(self, ref: str) -> tuple[Version, tuple[Reached, ...]]:
        """A version of one's own, and which servers its recall or deletion reached.

        Raises:
            ApiError: the server refused or did not answer.
        """
        found = self._ask("GET", f"{_version_path(Reference.parse(ref))}/reach")
        return _version(found["version"]), tuple(map(_reached, found["data"]))

    def share(self, name: str, visibility: Visibility, tenants: Sequence[str] = ()) -> Listing:
        """Say who may read an adapter; see `Registry.share`."""
        body = {"visibility": visibility, "tenants": list(tenants)}
        self._ask("PUT", f"{_path(AdapterName.parse(name))}/visibility", body)
        return self.show(name)

    def _withdraw(self, ref: str, how: Literal["yank", "recall", "delete"], reason: str) -> Version:
        return _version(self._ask("POST", f"{_version_path(Reference.parse(ref))}/{how}", {"reason": reason}))

    def _described(self, ref: str) -> tuple[Version, Manifest]:
        """A version and its manifest, which has the digest that it should."""
        reference = Reference.parse(ref)
        found = self._ask("GET", _version_path(reference))
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

    def _ask(self, method: str, path: str, body: Any = None, query: dict[str, Any] | None = None) -> dict[str, Any]:
        return patiently(lambda: self.client.call(method, path, body, query=query), self.tell)


def _path(name: AdapterName) -> str:
    return f"/v1/adapters/{name}"


def _alias_path(name: AdapterName, alias: str) -> str:
    return f"{_path(name)}/aliases/{quote(alias, safe='')}"


def _version_path(reference: Reference) -> str:
    return f"{_path(reference.name)}/versions/{quote(_pick(reference), safe='')}"


def _pick(reference: Reference) -> str:
    """What of a reference follows the name."""
    if reference.version is not None:
        return str(reference.version)
    return reference.digest or reference.alias or LATEST


def _reached(found: dict[str, Any]) -> Reached:
    try:
        told = {field.name: found[field.name] for field in fields(Reached)}
        return Reached(**told | {"tenants": tuple(found["tenants"])})
    except (KeyError, TypeError) as error:
        raise _misunderstood() from error


def _version(found: dict[str, Any]) -> Version:
    try:
        told = {each: found[each] for each in ("name", "version", "digest", "created_at", "recalled", "deleted")}
        return Version(**told, yanked=found["yanked"] is not None, yank_reason=found["yanked"])
    except (KeyError, TypeError) as error:
        raise _misunderstood() from error


def _misunderstood() -> ApiError:
    return ApiError("The server is of another version of Swapmeet. Use the client of its version.")
