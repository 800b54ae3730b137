"""What is found and liked: search, cards, likes, files by their hash. Of others' private adapters nobody learns."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Path, Request
from fastapi import Query as Parameter
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from swapmeet.gateway import adapter_route
from swapmeet.gateway.adapter_route import Backend, Name, Reader
from swapmeet.gateway.authority import Caller
from swapmeet.gateway.services import Services
from swapmeet.jobs.examples import examples_of
from swapmeet.marketplace import Market
from swapmeet_registry import AdapterName, Listing, Reference, Version
from swapmeet_registry.cards import Card, markdown, terminal
from swapmeet_registry.index import Hit, Page, Query

router = APIRouter(prefix="/v1", tags=["marketplace"])
ADAPTER = "/adapters" + adapter_route.ADAPTER
Advice = Callable[[Version, bool], tuple[str, ...]]
DIGEST = r"^[0-9a-f]{64}$"


def install(app: FastAPI, market: Market) -> None:
    """Add the routes to an app, over this market and the app's services."""
    app.state.market = market
    app.include_router(router)


async def market(request: Request) -> Market:
    """The app's market, as a FastAPI dependency."""
    found = request.app.state.market
    assert isinstance(found, Market)
    return found


async def noting(request: Request) -> Callable[[AdapterName], None]:
    """What has the index know of a change to an adapter, as a FastAPI dependency; an app without a market has none."""
    found = getattr(request.app.state, "market", None)
    return found.note if isinstance(found, Market) else lambda _: None


async def advising(request: Request) -> Advice:
    """What has advice on a version, for its owner or not, as a FastAPI dependency; without a market there is none."""
    found = getattr(request.app.state, "market", None)
    if not isinstance(found, Market):
        return lambda *_: ()
    return lambda version, owner: found.advice(version, owner=owner)


Noting = Annotated[Callable[[AdapterName], None], Depends(noting)]
Advising = Annotated[Advice, Depends(advising)]
Sold = Annotated[Market, Depends(market)]
Text = Annotated[str | None, Parameter(max_length=1000)]
Texts = Annotated[Sequence[str], Parameter(max_length=20)]
Number = Annotated[int | None, Parameter(ge=0, le=2**62)]


@router.get("/search")
def search(
    caller: Reader,
    found: Sold,
    query: Annotated[str, Parameter(max_length=1000)] = "",
    base: Text = None,
    task: Text = None,
    tag: Texts = (),
    license: Text = None,  # noqa: A002 - the parameter's name
    owner: Text = None,
    rank_min: Number = None,
    rank_max: Number = None,
    size_min: Number = None,
    size_max: Number = None,
    metric: Texts = (),
    sort: Literal["relevance", "downloads", "likes", "date"] = "relevance",
    versions: bool = False,
    cursor: Text = None,
    limit: Annotated[int, Parameter(ge=1, le=200)] = 20,
) -> dict[str, Any]:
    """Find adapters, each by its newest usable version, or with `versions` versions.

    All words and filters must fit. `base` is a base's name or weights digest, a `metric` a range such as
    `eval_loss<=0.9`, sizes are in bytes; `tag` and `metric` may be given again. `next_cursor` of an answer is the
    `cursor` of the page that follows.
    """
    wanted = Query(
        query, base, task, tuple(tag), license, owner, rank_min, rank_max, size_min, size_max, tuple(metric), sort,
        versions, cursor, limit,
    )  # fmt: skip
    return _page(found.index.search(wanted, _reader(caller)))


@router.get("/files-by-hash/{sha256}")
def files_by_hash(sha256: Annotated[str, Path(pattern=DIGEST)], caller: Reader, found: Sold) -> dict[str, Any]:
    """The versions that a file is part of, newest first; `withdrawn` says of some that they were yanked or recalled."""
    return _page(Page(found.index.by_file(sha256, _reader(caller))))


@router.get(ADAPTER + "/card")
def card(
    request: Request,
    name: Name,
    caller: Reader,
    backend: Backend,
    found: Sold,
    version: Annotated[str | None, Parameter(max_length=200)] = None,
    format: Literal["json", "markdown", "text"] = "json",  # noqa: A002 - the parameter's name
) -> Response:
    """All that is told of a version on one page: as JSON, as Markdown without HTML, or as text for a terminal.

    The newest usable one, if none is named; one that was withdrawn has a card that says so.
    """
    listing = backend.access.listing(caller, name)
    wanted = Reference(name) if version is None else Reference.within(name, version)
    shown = _card(request, backend, caller, wanted, listing)
    headers = {"x-content-type-options": "nosniff"}
    if format == "markdown":
        return PlainTextResponse(markdown(shown), media_type="text/markdown", headers=headers)
    if format == "text":
        return PlainTextResponse(terminal(shown), headers=headers)
    received = _popularity(found, name, caller)
    more = {key: received[key] for key in ("likes", "liked", "downloads")}
    return JSONResponse({"object": "adapter.card"} | shown.as_json() | more, headers=headers)


@router.get(ADAPTER + "/newer")
def newer(
    name: Name, caller: Reader, backend: Backend, version: Annotated[int, Parameter(ge=1, le=10**9)] = 1
) -> dict[str, Any]:
    """Whether there is a newer usable version than one at hand, and which."""
    latest = next((each for each in reversed(backend.access.listing(caller, name).versions) if each.usable), None)
    better = latest if latest is not None and latest.version > version else None
    told = None if better is None else _version(better)
    return {"object": "adapter.newer", "name": str(name), "version": version, "newer": told}


@router.get(ADAPTER + "/likes")
def likes(name: Name, caller: Reader, backend: Backend, found: Sold) -> dict[str, Any]:
    """How an adapter is received. Its owner is told the downloads of each day."""
    backend.access.listing(caller, name)
    return _popularity(found, name, caller)


@router.put(ADAPTER + "/likes")
def like(name: Name, caller: Reader, backend: Backend, found: Sold) -> dict[str, Any]:
    """Like an adapter, in the name of the caller's tenant; once more changes nothing."""
    backend.access.listing(caller, name)
    found.counters.like(name, caller.tenant)
    return _popularity(found, name, caller)


@router.delete(ADAPTER + "/likes")
def unlike(name: Name, caller: Reader, backend: Backend, found: Sold) -> dict[str, Any]:
    """Take a like back."""
    backend.access.listing(caller, name)
    found.counters.unlike(name, caller.tenant)
    return _popularity(found, name, caller)


def _reader(caller: Caller) -> str | None:
    return None if caller.operator else caller.tenant


def _card(request: Request, backend: Services, caller: Caller, wanted: Reference, listing: Listing) -> Card:
    registry, tuning = backend.registry, getattr(request.app.state, "tuning", None)
    version = registry.resolve(str(wanted)) if wanted == Reference(wanted.name) else registry.find(str(wanted))
    examples = None
    if tuning is not None and version.usable and (caller.operator or caller.tenant == wanted.name.tenant):
        run = registry.manifest(version).run
        examples = examples_of(backend.tenancy.database, tuning.store, wanted.name, run)
    return Card.of(registry, version, listing, {}, reader=_reader(caller), examples=examples)


def _popularity(found: Market, name: AdapterName, caller: Caller) -> dict[str, Any]:
    owner = caller.operator or caller.tenant == name.tenant
    received = found.counters.popularity(name, caller.tenant, days=owner)
    told: dict[str, Any] = {"object": "adapter.likes", "name": str(name), **asdict(received)}
    days: Sequence[tuple[date, int]] = told.pop("days")
    if owner:
        told["days"] = [{"day": day.isoformat(), "downloads": count} for day, count in days]
    return told


def _page(found: Page) -> dict[str, Any]:
    data = [_hit(each) for each in found.hits]
    return {"object": "list", "data": data, "has_more": found.next is not None, "next_cursor": found.next}


def _hit(found: Hit) -> dict[str, Any]:
    return {"object": "adapter.hit", "id": f"{found.name}@{found.digest}", **asdict(found)}


def _version(version: Version) -> dict[str, Any]:
    return {"version": version.version, "digest": version.digest, "created_at": version.created_at}
