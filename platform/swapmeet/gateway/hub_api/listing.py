"""Pages of repositories, by name.

Which there are, the market's index says, so that a page costs as much whatever there is beside it; what is told of
each, its head and its files do.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
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
DETAIL = {"full", "cardData", "config", "expand"}
"""Parameters that ask for what every answer has."""
TAGS = {"filter", "pipeline_tag", "library", "other"}
MOST = 20
"""Words, and tags, of a query: each is a condition of its own."""
KNOWN = DETAIL | TAGS | {"search", "author", "limit", "cursor"}
EVERYBODYS = {"peft", "safetensors", "text-generation", "swapmeet", "lora"}
"""Tags that come with any adapter; those with a colon are made of what else is known. All others are its manifest's."""

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
    own = tuple(sorted(tag for tag in query.tags - EVERYBODYS if ":" not in tag))
    wanted = Wanted(query.author, tuple(query.words), own, query.after, LOOKED_AT)
    found: list[dict[str, Any]] = []
    for looked_at, name in enumerate(names(None if caller.operator else caller.tenant, wanted), start=1):
        described = _described(AdapterName.parse(name), caller, at)
        if described is not None and query.tags <= set(described["tags"]):
            found.append(described)
        if len(found) == query.limit or looked_at == LOOKED_AT:
            return found, name
    return found, None


def _described(name: AdapterName, caller: Caller, at: At) -> dict[str, Any] | None:
    """A repository at its latest version; None where the caller sees none, or it can not be read."""
    try:
        return describing.model(*at(caller, name.tenant, name.name, MAIN))
    except HubRefused:
        return None
    except Corrupt as error:  # all others' are not to be missing for it
        log.error("%s is not listed: %s", name, error)
        return None
