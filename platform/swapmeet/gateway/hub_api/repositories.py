"""Names as repositories, and a Hub's revisions as versions.

    main                    the latest version
    3, v3                   version 3
    prod                    what the alias points to
    40 digits of hex        a commit: the version whose manifest's digest begins so
    sha256:HEX, HEX         the version with this digest

What is first in this list wins: an alias that is called `main` or `v3` is found by the registry's own means only.
"""

import re
from dataclasses import dataclass

from swapmeet.adapter_access import AdapterAccess, spelled
from swapmeet.gateway.hub_api.refusals import HubRefused, no_repository
from swapmeet.tenancy import Caller
from swapmeet_registry import AdapterName, InvalidName, NotFound, Recalled, Reference, Version
from swapmeet_registry.head import Head, Record

MAIN = "main"
COMMIT = 40
"""Digits of a commit, as of a SHA-1: clients take such a revision for one that never changes."""
_VERSION = re.compile(r"v?([1-9][0-9]{0,8})")
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_COMMIT = re.compile(rf"[0-9a-f]{{{COMMIT}}}")


@dataclass(frozen=True, slots=True)
class Repository:
    """An adapter, as far as a caller may read it: all of its `head`, or `only` what permissions name."""

    head: Head
    only: tuple[Reference, ...] | None = None

    def find(self, revision: str) -> Version:
        """The version that a revision means.

        Raises:
            HubRefused: there is none, or nobody, or not the caller, is to get it.
        """
        try:
            reference = self._reference(revision)
            if not self._opens(reference):
                raise NotFound(
                    f"There is no revision {revision[:200]!r} of {self.head.adapter} that this key may read."
                )
            return Version.of(self.head, self.head.resolve(reference))
        except (InvalidName, NotFound, Recalled) as error:
            raise HubRefused(404, str(error), "RevisionNotFound") from error

    def branches(self) -> dict[str, Record]:
        """What moves: `main`, and the aliases that are revisions of the same name."""
        named = {MAIN: self.head.latest.version} if self.head.latest else {}
        own = (MAIN, _VERSION, _DIGEST, _COMMIT)
        for alias, number in self.head.aliases.items():
            if not any(re.fullmatch(pattern, alias) for pattern in own):
                named[alias] = number
        return self._usable(named)

    def tags(self) -> dict[str, Record]:
        """What does not: the versions."""
        return self._usable({f"v{record.version}": record.version for record in self.head.versions})

    def commits(self) -> list[Record]:
        """The usable versions, oldest first."""
        return [each for each in self.head.versions if each.usable and self._opens(self._digest(each.digest))]

    def _usable(self, named: dict[str, int]) -> dict[str, Record]:
        found = {name: self.head.versions[number - 1] for name, number in named.items()}
        return {n: record for n, record in found.items() if record.usable and self._opens(self._reference(n))}

    def _opens(self, wanted: Reference) -> bool:
        if self.only is None:
            return True
        if spelled(wanted) in map(spelled, self.only):
            return self._means(wanted) is not None  # or else it would be said what there is instead
        return wanted.digest is not None and wanted.digest in map(self._means, self.only)

    def _means(self, granted: Reference) -> str | None:
        try:
            return self.head.find(granted).digest
        except NotFound:
            return None

    def _digest(self, digest: str) -> Reference:
        return Reference(AdapterName.parse(self.head.adapter), digest=digest)

    def _reference(self, revision: str) -> Reference:
        name = AdapterName.parse(self.head.adapter)
        if revision == MAIN:
            return Reference(name)
        if match := _VERSION.fullmatch(revision):
            return Reference(name, version=int(match[1]))
        if match := _DIGEST.fullmatch(revision):
            return self._digest(f"sha256:{match[1]}")
        if _COMMIT.fullmatch(revision):
            known = (record.digest for record in self.head.versions if commit_of(record.digest) == revision)
            return self._digest(next(known, f"sha256:{revision:0<64}"))
        return Reference.parse(f"{name}:{revision}")


class Repositories:
    """The adapters of a registry, to those who may read them."""

    def __init__(self, access: AdapterAccess) -> None:
        self._access = access

    def open(self, caller: Caller, namespace: str, repository: str) -> Repository:
        """What there is under a name.

        Raises:
            HubRefused: nothing that the caller may read.
        """
        try:
            name = AdapterName(namespace, repository)
            if self._access.may_list(caller, name):
                return Repository(self._access.registry.head(str(name)))
            if granted := self._access.grants(caller, name):
                return Repository(self._access.registry.head(str(name)), granted)
        except (InvalidName, NotFound):
            pass
        raise no_repository(f"{namespace}/{repository}")


def commit_of(digest: str) -> str:
    """The commit that stands for a manifest's digest."""
    return digest.removeprefix("sha256:")[:COMMIT]
