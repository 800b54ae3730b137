"""A server's registry, used as `swapmeet_registry.Registry` is; what is pulled is checked here, byte for byte."""

from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from swapmeet.adapter_reading import alias_path, files_path, path_of, pick, understanding, version_of, version_path
from swapmeet.adapter_upload import Upload
from swapmeet.adapter_vouching import RemoteVouching
from swapmeet.uploading import Watch, unwatched
from swapmeet_registry import AdapterName, Fingerprint, Listing, Reference, Version
from swapmeet_registry.copies.pulling import receive
from swapmeet_registry.fingerprint import require_fit
from swapmeet_registry.head import Visibility
from swapmeet_registry.recalls import Reached


class RemoteAdapters(RemoteVouching):
    """The adapters of a server, as far as its key may read and change them. The arguments: `RemoteReading`."""

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
        digest = Upload(self.client, self.tell, f"{path_of(target)}/uploads").publish(Path(folder), wanted, watch)
        return version_of(self._ask("GET", f"{path_of(target)}/versions/{digest}"))

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
        self.require_signed(version, manifest)
        if base is not None and (warning := require_fit(manifest.base, base, str(version))):
            self.tell(warning)
        receive(manifest, Path(folder), partial(self._fetch, files_path(version)))
        return version

    def tag(self, name: str, alias: str, ref: str, expect: int | None = None, by: str | None = None) -> Version:  # noqa: ARG002
        """Point an alias to a version; see `Registry.tag`. Who does it the server knows by the key."""
        target = AdapterName.parse(name)
        body = {"version": pick(Reference.within(target, ref)), "expect": expect}
        return version_of(self._ask_once("PUT", alias_path(target, alias), body))

    def untag(self, name: str, alias: str, expect: int | None = None, by: str | None = None) -> Listing:  # noqa: ARG002
        """Remove an alias; see `Registry.untag`, and `tag`."""
        self._ask_once("DELETE", alias_path(AdapterName.parse(name), alias), query={"expect": expect})
        return self.show(name)

    def undo(self, name: str, alias: str, by: str | None = None) -> Listing:  # noqa: ARG002
        """Point an alias to where it pointed before its last move; see `Registry.undo`, and `tag`."""
        self._ask_once("POST", f"{alias_path(AdapterName.parse(name), alias)}/undo")
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

    @understanding()
    def reach(self, ref: str) -> tuple[Version, tuple[Reached, ...]]:
        """A version of one's own, and which servers its recall or deletion reached.

        Raises:
            ApiError: the server refused or did not answer.
        """
        found = self._ask("GET", f"{version_path(Reference.parse(ref))}/reach")
        return version_of(found["version"]), tuple(map(_reached, found["data"]))

    def share(self, name: str, visibility: Visibility, tenants: Sequence[str] = ()) -> Listing:
        """Say who may read an adapter; see `Registry.share`."""
        body = {"visibility": visibility, "tenants": list(tenants)}
        self._ask("PUT", f"{path_of(AdapterName.parse(name))}/visibility", body)
        return self.show(name)

    def _withdraw(self, ref: str, how: Literal["yank", "recall", "delete"], reason: str) -> Version:
        return version_of(self._ask("POST", f"{version_path(Reference.parse(ref))}/{how}", {"reason": reason}))


def _reached(found: dict[str, Any]) -> Reached:
    told = {field.name: found[field.name] for field in fields(Reached)}
    return Reached(**told | {"tenants": tuple(found["tenants"])})
