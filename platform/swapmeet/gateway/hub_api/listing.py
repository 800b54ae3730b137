"""Pages of repositories, by name.

Which there are, the market's index says, also by tags, base and licence, so that a page costs as much whatever there
is beside it; what is told of each, its head and its files do. What the index has no answer to (`base_model:…`, which is
what an adapter's own configuration calls its base) is looked for in these, name by name, for a short time: a page may
then be empty, and say where the next one begins.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any, Self

from starlette.datastructures import QueryParams

from swapmeet.gateway.hub_api import describing
from swapmeet.gateway.hub_api.refusals import HubRefused
from swapmeet.gateway.hub_api.repositories import MAIN, Repository
from swapmeet.gateway.hub_api.snapshots import Snapshot
from swapmeet.marketplace import Wanted
from swapmeet.tenancy import Caller
from swapmeet_registry import AdapterName, Corrupt

log = logging.getLogger("swapmeet.gateway")
PAGE = 100
LOOKED_AT = 200
"""Names that a page looks at, whether they match or not: what is left is on the next."""
SECONDS = 2.0
"""After which a page ends where it is, and the next goes on."""
AT_ONCE = 16
"""Names that are looked at beside each other: a store over a network answers each only after a while."""
BASE, LICENSE = "base:", "license:"
DETAIL = {"full", "cardData", "config", "expand"}
"""Parameters that ask for what every answer has."""
TAGS = {"filter", "pipeline_tag", "library", "other"}
MOST = 20
"""Words, and tags, of a query: each is a condition of its own."""
KNOWN = DETAIL | TAGS | {"search", "author", "limit", "cursor"}
EVERYBODYS = {"peft", "safetensors", "text-generation", "swapmeet", "lora"}
"""Tags that come with any adapter."""
MADE = (BASE, LICENSE, "base_model:")
"""How tags begin that are made of what else is known, unless they are the manifest's as well, as all others are."""

Names = Callable[[str | None, Wanted], list[str]]
"""Finds names that a tenant may know of; None may know of all."""
At = Callable[[Caller, str, str, str], tuple[Repository, Snapshot]]
"""Gives a repository, to a caller, by its two names, and its files at a revision."""


@dataclass(frozen=True, slots=True)
class Query:
    """What to list: of one author, with all of the words in the name, with all of the tags; from behind a name."""

    author: str | None = None
    words: list[str] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)
    after: str = ""
    limit: int = PAGE

    @classmethod
    def of(cls, given: QueryParams) -> Self:
        """Read a query's parameters.

        Raises:
            HubRefused: one would narrow or order the list in a way that is not supported.
        """
        if unknown := sorted(set(given) - KNOWN):
            raise HubRefused(
                400,
                f"This server does not list by {', '.join(unknown)[:200]}, only by search, author and filter, "
                "ordered by name. Leave it out.",
            )
        limit = given.get("limit", str(PAGE))
        if not (limit.isascii() and limit.isdecimal() and len(limit) < 10 and int(limit)):
            raise HubRefused(400, f"limit is {limit[:50]!r}. Give a whole number from 1.")
        words = given.get("search", "").lower().split()
        tags = {tag for name in TAGS for each in given.getlist(name) for tag in each.split(",")}
        if len(words) > MOST or len(tags) > MOST:
            raise HubRefused(400, f"Search for at most {MOST} words and {MOST} tags at once.")
        return cls(
            given.get("author"),
            words,
            tags,
            given.get("cursor", ""),
            min(int(limit), PAGE),
        )


def page(query: Query, caller: Caller, names: Names, at: At) -> tuple[list[dict[str, Any]], str | None]:
    """Repositories that the caller may read, and behind which name there may be more, if there may."""
    own = tuple(sorted(tag for tag in query.tags - EVERYBODYS if not tag.startswith(MADE)))
    bases, licences = _behind(BASE, query.tags), _behind(LICENSE, query.tags - {LICENSE + "other"})
    wanted = Wanted(query.author, tuple(query.words), own, bases, licences, query.after, LOOKED_AT)
    there = names(None if caller.operator else caller.tenant, wanted)
    found: list[dict[str, Any]] = []
    place, until = 0, monotonic() + SECONDS
    with ThreadPoolExecutor(AT_ONCE, "hub-list") as pool:
        while place < len(there):
            some = there[place : place + (AT_ONCE if query.tags else min(AT_ONCE, query.limit - len(found)))]
            for name, described in zip(some, pool.map(partial(_described, caller, at), some), strict=True):
                place += 1
                if described is not None and query.tags <= set(described["tags"]):
                    found.append(described)
                if len(found) == query.limit:
                    return found, name
            if monotonic() > until or place == LOOKED_AT:
                return found, some[-1]
    return found, None


def _behind(beginning: str, tags: set[str]) -> tuple[str, ...]:
    """What tags that begin so have behind that."""
    return tuple(sorted(tag.removeprefix(beginning) for tag in tags if tag.startswith(beginning)))


def _described(caller: Caller, at: At, listed: str) -> dict[str, Any] | None:
    """A repository at its latest version; None where the caller sees none, or it can not be read."""
    name = AdapterName.parse(listed)
    try:
        return describing.model(*at(caller, name.tenant, name.name, MAIN))
    except HubRefused:
        return None
    except Corrupt as error:  # all others' are not to be missing for it
        log.error("%s is not listed: %s", name, error)
        return None
