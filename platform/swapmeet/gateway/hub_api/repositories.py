"""Names as repositories, and a Hub's revisions as versions.

    main                    the latest version
    3, v3                   version 3
    prod                    what the alias points to
    40 digits of hex        a commit: the version whose manifest's digest begins so
    sha256:HEX, HEX         the version with this digest

What is first in this list wins: an alias that is called `main` or `v3` is found by the registry's own means only.
"""

import re
from collections.abc import Iterator

from swapmeet.adapter_access import AdapterAccess
from swapmeet.gateway.hub_api.refusals import HubRefused, no_repository
from swapmeet.tenancy import Caller
from swapmeet_registry import AdapterName, InvalidName, NotFound, Recalled, Reference, Version
from swapmeet_registry.head import Head
from swapmeet_registry.heads import Heads

MAIN = "main"
COMMIT = 40
"""Digits of a commit, as of a SHA-1: clients take such a revision for one that never changes."""
_VERSION = re.compile(r"v?([1-9][0-9]{0,8})")
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_COMMIT = re.compile(rf"[0-9a-f]{{{COMMIT}}}")


class Repositories:
    """The adapters of a registry, to those who may read them."""

    def __init__(self, access: AdapterAccess) -> None:
        self._access, self._registry, self._heads = access, access.registry, Heads(access.registry.backend)

    def open(self, caller: Caller, namespace: str, repository: str) -> Head:
        """What there is under a name.

        Raises:
            HubRefused: nothing that the caller may read.
        """
        try:
            name = AdapterName(namespace, repository)
            if self._access.may_read(caller, Reference(name)):
                return self._heads.get(name)
        except (InvalidName, NotFound):
            pass
        raise no_repository(f"{namespace}/{repository}")

    def names(self, author: str | None, words: list[str], after: str) -> Iterator[AdapterName]:
        """All names behind `after`, sorted: of one author, with all of the words in them."""
        for name in self._registry.names():
            owner = name.partition("/")[0]
            if name > after and author in (None, owner) and all(word in name for word in words):
                yield AdapterName.parse(name)


def commit_of(digest: str) -> str:
    """The commit that stands for a manifest's digest."""
    return digest.removeprefix("sha256:")[:COMMIT]


def find(head: Head, revision: str) -> Version:
    """The version that a revision means.

    Raises:
        HubRefused: there is none, or nobody is to get it any more.
    """
    try:
        return Version.of(head, head.resolve(_reference(head, revision)))
    except (InvalidName, NotFound, Recalled) as error:
        raise HubRefused(404, str(error), "RevisionNotFound") from error


def aliases(head: Head) -> dict[str, int]:
    """The aliases that are revisions of the same name."""
    own = (MAIN, _VERSION, _DIGEST, _COMMIT)
    return {
        alias: number
        for alias, number in head.aliases.items()
        if not any(re.fullmatch(pattern, alias) for pattern in own)
    }


def _reference(head: Head, revision: str) -> Reference:
    name = AdapterName.parse(head.adapter)
    if revision == MAIN:
        return Reference(name)
    if match := _VERSION.fullmatch(revision):
        return Reference(name, version=int(match[1]))
    if match := _DIGEST.fullmatch(revision):
        return Reference(name, digest=f"sha256:{match[1]}")
    if _COMMIT.fullmatch(revision):
        digests = [record.digest for record in head.versions if commit_of(record.digest) == revision]
        if not digests:
            raise NotFound(f"{name} has no commit {revision}. Commits are the first 40 digits of a version's digest.")
        return Reference(name, digest=digests[0])
    return Reference.parse(f"{name}:{revision}")
