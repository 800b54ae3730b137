"""A server's registry, read: what comes is compared here, byte for byte, with its digest."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import uuid4

from swapmeet.errors import ApiError, PlatformError
from swapmeet.following import Tell, patiently, silent
from swapmeet_registry import AdapterName, Listing, Manifest, Reference, StoredFile, Trust, Version, canonical
from swapmeet_registry.contents import compared
from swapmeet_registry.errors import Corrupt, RegistryError
from swapmeet_registry.names import LATEST
from swapmeet_registry.origin.lineage import Ancestor
from swapmeet_registry.signing import OFF
from swapmeet_registry.version import AliasMove

if TYPE_CHECKING:
    from swapmeet.client import Client


@contextmanager
def understanding() -> Iterator[None]:
    """A block, or a function, that reads an answer; one that has not what it should is told as `ApiError`."""
    try:
        yield
    except (PlatformError, RegistryError):
        raise
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ApiError("The server is of another version of Swapmeet. Use the client of its version.") from error


@dataclass(frozen=True)
class RemoteReading:
    """What a server's registry tells its key's holder.

    Args:
        client: of the server.
        tell: is told that the server does not answer, and what a manifest's base lacks.
        trust: whose signatures are asked for here, whatever the server asks for.
    """

    client: "Client"
    tell: Tell = silent
    trust: Trust = OFF

    def resolve(self, ref: str) -> Version:
        """The version that a reference names."""
        return self._described(ref)[0]

    def manifest(self, version: Version) -> Manifest:
        """What a version consists of."""
        return self._described(version.pinned)[1]

    @understanding()
    def lineage(self, ref: str | Version) -> tuple[Ancestor, ...]:
        """What a version comes from; see `Registry.lineage`. What may not be seen looks as if it were missing."""
        place = version_path(Reference.parse(ref.pinned if isinstance(ref, Version) else ref))
        return tuple(map(_ancestor, self._ask("GET", f"{place}/lineage")["data"]))

    def stream(self, version: Version, file: StoredFile) -> Iterator[bytes]:
        """A file's bytes in pieces; the end comes only if they are the right ones.

        Raises:
            ApiError: the server refused or did not answer.
            Corrupt: they are not what the manifest says.
        """
        chunks = self._fetch(files_path(version), file, 0)
        return compared(chunks, version, file, lambda: f"the server at {self.client.http.base_url}")

    @understanding()
    def show(self, name: str) -> Listing:
        """Everything under a name."""
        place = path_of(AdapterName.parse(name))
        found = self._ask("GET", place)
        told = self._ask("GET", f"{place}/history")
        return Listing(
            name=found["id"],
            versions=tuple(map(version_of, found["versions"])),
            aliases=dict(found["aliases"]),
            history=tuple(AliasMove(move["alias"], move["version"], move["at"], move["by"]) for move in told["data"]),
            visibility=found["visibility"],
            shared_with=tuple(found["shared_with"]),
            forgotten=told["forgotten"],
        )

    @understanding()
    def advice(self, name: str) -> tuple[str, ...]:
        """What stands out of the weights of an adapter's latest version, for people to judge."""
        place = path_of(AdapterName.parse(name))
        return tuple(map(str, self._ask("GET", place, query={"advice": "true"})["advice"]))

    def names(self, tenant: str | None = None) -> Iterator[str]:
        """The names that may be read, or a tenant's of them."""
        return (str(each["id"]) for each in self.client.listed("/v1/adapters", {"owner": tenant, "limit": 100}))

    @understanding()
    def _described(self, ref: str) -> tuple[Version, Manifest]:
        """A version and its manifest, which has the digest that it should."""
        reference = Reference.parse(ref)
        found = self._ask("GET", version_path(reference))
        version = version_of(found)
        said = (version.name, reference.digest or version.digest, reference.version or version.version)
        if said != (str(reference.name), version.digest, version.version):
            raise Corrupt(f"The server gave {version} {version.digest} for {ref}. Ask its operator to verify it.")
        return version, _manifest(version, found["manifest"])

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

    @understanding()
    def _ask(self, method: str, path: str, body: Any = None, query: dict[str, Any] | None = None) -> dict[str, Any]:
        return patiently(lambda: self.client.call(method, path, body, query=query), self.tell)

    @understanding()
    def _ask_once(
        self, method: str, path: str, body: Any = None, query: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """As `_ask`, for what must not happen twice: an answer that was lost is asked for again by the same key."""
        key = {"idempotency-key": uuid4().hex}
        return patiently(lambda: self.client.call(method, path, body, query=query, headers=key), self.tell)


def files_path(version: Version) -> str:
    """Where a version's files are."""
    return f"{version_path(Reference.parse(version.pinned))}/files"


def path_of(name: AdapterName) -> str:
    """Where an adapter is."""
    return f"/v1/adapters/{name}"


def alias_path(name: AdapterName, alias: str) -> str:
    """Where an alias is."""
    return f"{path_of(name)}/aliases/{quote(alias, safe='')}"


def version_path(reference: Reference) -> str:
    """Where a version is."""
    return f"{path_of(reference.name)}/versions/{quote(pick(reference), safe='')}"


def pick(reference: Reference) -> str:
    """What of a reference follows the name."""
    if reference.version is not None:
        return str(reference.version)
    return reference.digest or reference.alias or LATEST


@understanding()
def version_of(found: dict[str, Any]) -> Version:
    """A version, as the server tells of it."""
    told = {each: found[each] for each in ("name", "version", "digest", "created_at", "recalled", "deleted")}
    return Version(**told, yanked=found["yanked"] is not None, yank_reason=found["yanked"])


def _ancestor(found: dict[str, Any]) -> Ancestor:
    ref, told, written, problem = (found[each] for each in ("ref", "version", "manifest", "problem"))
    version = None if told is None else version_of(told)
    manifest = None if version is None or written is None else _manifest(version, written)
    return Ancestor(ref, version, manifest, problem)


def _manifest(version: Version, written: dict[str, Any]) -> Manifest:
    """A version's manifest, which has the digest that it should."""
    data = canonical.encode(written)
    if canonical.digest(data) != version.digest or written.get("adapter") != version.name:
        raise Corrupt(
            f"The server gave a manifest for {version.pinned} that is another's. Ask its operator to verify it."
        )
    return Manifest.decode(data, f"The manifest of {version}")
