"""The paths that huggingface_hub asks for. They are no part of the API's own description: the Hub's is theirs.

Paths of repositories' files begin with a tenant's name. So these routes come after all others, whose paths they can not
take: a tenant `v1` is found by `/api/models/v1/…`, and its files where no other route is.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any
from urllib.parse import parse_qs, quote

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from swapmeet.gateway.adapter_bytes import Content, send
from swapmeet.gateway.authority import Caller, may
from swapmeet.gateway.downloads import Count, Downloads
from swapmeet.gateway.hub_api import describing, listing
from swapmeet.gateway.hub_api.refusals import HubRefused, HubRoute, no_repository
from swapmeet.gateway.hub_api.repositories import MAIN, Repositories, Repository, commit_of
from swapmeet.gateway.hub_api.snapshots import File, Snapshot, Snapshots
from swapmeet.gateway.services import Services
from swapmeet.tenancy.scopes import SCOPES
from swapmeet_registry import Registry
from swapmeet_registry.admission import lora_weights

MOST_PATHS = 10_000
LONGEST_PATHS = 1 << 20
"""Bytes of a body that names paths: it is read on the event loop."""
router = APIRouter(route_class=HubRoute, include_in_schema=False)
Reader = Annotated[Caller, Depends(may("read"))]
Anybody = Annotated[Caller, Depends(may(*SCOPES))]
REPOSITORY = "/api/models/{namespace}/{repository}"


@dataclass(frozen=True, slots=True)
class Hub:
    """What the routes stand on."""

    registry: Registry
    repositories: Repositories
    snapshots: Snapshots
    names: listing.Names
    downloads: Downloads

    def at(self, caller: Caller, namespace: str, repository: str, revision: str) -> tuple[Repository, Snapshot]:
        """A repository, and the files that it has at a revision."""
        found = self.repositories.open(caller, namespace, repository)
        return found, self.snapshots.of(found.find(revision))


def install(app: FastAPI, names: listing.Names, downloaded: Count = lambda *_: None) -> None:
    """Add the routes to an app, behind all of its others.

    Args:
        app: has its services.
        names: finds what is listed.
        downloaded: counts downloads.
    """
    backend = app.state.services
    assert isinstance(backend, Services)
    hub = Hub(backend.registry, Repositories(backend.access), Snapshots(backend.registry), names, Downloads(downloaded))
    app.state.hub = hub
    app.include_router(router)


async def hub_of(request: Request) -> Hub:
    """What the app's routes stand on, as a FastAPI dependency."""
    found = request.app.state.hub
    assert isinstance(found, Hub)
    return found


Served = Annotated[Hub, Depends(hub_of)]


@router.get("/api/whoami-v2")
async def whoami(caller: Anybody) -> dict[str, Any]:
    """Whose the token is."""
    token = {"type": "access_token", "accessToken": {"displayName": caller.key, "role": "read"}}
    name = {"id": caller.tenant, "name": caller.tenant, "fullname": caller.tenant}
    return {"type": "user", **name, "isPro": False, "orgs": [], "auth": token}


@router.get("/api/models")
def models(request: Request, caller: Reader, hub: Served) -> JSONResponse:
    """A page of repositories."""
    found, after = listing.page(listing.Query.of(request.query_params), caller, hub.names, hub.at)
    more = request.url.include_query_params(cursor=after)
    return JSONResponse(found, headers={} if after is None else {"link": f'<{more}>; rel="next"'})


@router.get(REPOSITORY)
@router.get(REPOSITORY + "/revision/{revision:path}")
def model(
    request: Request, namespace: str, repository: str, caller: Reader, hub: Served, revision: str = MAIN
) -> dict[str, Any]:
    """A repository at a revision."""
    found, snapshot = hub.at(caller, namespace, repository, revision)
    return describing.model(found, snapshot, blobs="blobs" in request.query_params)


@router.get(REPOSITORY + "/auth-check")
def auth_check(namespace: str, repository: str, caller: Reader, hub: Served) -> dict[str, Any]:
    """Whether the repository may be read."""
    hub.repositories.open(caller, namespace, repository)
    return {}


@router.get(REPOSITORY + "/refs")
def refs(namespace: str, repository: str, caller: Reader, hub: Served) -> dict[str, Any]:
    """Branches and tags."""
    return describing.refs(hub.repositories.open(caller, namespace, repository))


@router.get(REPOSITORY + "/commits/{revision:path}")
def commits(namespace: str, repository: str, revision: str, caller: Reader, hub: Served) -> list[dict[str, Any]]:
    """A version and those before it."""
    found = hub.repositories.open(caller, namespace, repository)
    return describing.commits(found, found.find(revision).version)


@router.get(REPOSITORY + "/tree/{revision}")
@router.get(REPOSITORY + "/tree/{revision}/{folder:path}")
def tree(
    namespace: str, repository: str, revision: str, caller: Reader, hub: Served, folder: str = ""
) -> list[dict[str, Any]]:
    """A revision's files; there are no folders."""
    _, snapshot = hub.at(caller, namespace, repository, revision)
    if folder.strip("/"):
        raise _no_entry(folder, snapshot)
    return [describing.entry(file) for file in snapshot.files.values()]


@router.post(REPOSITORY + "/paths-info/{revision:path}")
async def paths_info(
    request: Request, namespace: str, repository: str, revision: str, caller: Reader, hub: Served
) -> list[dict[str, Any]]:
    """Those of some files that there are."""
    _, snapshot = await run_in_threadpool(hub.at, caller, namespace, repository, revision)
    paths = await _paths(request)
    return [describing.entry(snapshot.files[path]) for path in paths if path in snapshot.files]


@router.api_route("/{namespace}/{repository}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
def resolve(
    request: Request, namespace: str, repository: str, revision: str, path: str, caller: Reader, hub: Served
) -> Response:
    """A file. What a revision means may change between two requests, so they are sent on to its commit."""
    _, snapshot = hub.at(caller, namespace, repository, revision)
    version, file = snapshot.version, snapshot.files.get(path)
    hub.registry.require_signed(version, snapshot.manifest)
    if file is None:
        raise _no_entry(path, snapshot)
    commit = commit_of(version.digest)
    headers = describing.headers(file, commit)
    if revision != commit:
        place = f"{request.scope.get('root_path', '')}/{version.name}/resolve/{commit}/{quote(path)}"
        return Response(status_code=307, headers=headers | {"location": place})
    content = Content(file.size, file.sha256, partial(_read, hub, snapshot, file))
    if path == lora_weights.FILE:
        content = replace(content, sent=partial(hub.downloads.sent, version, caller.tenant, file.size))
    return send(request, content, headers)


@router.api_route("/{repository}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
@router.get("/api/models/{repository:path}")
async def nowhere(repository: str, caller: Reader) -> Response:  # noqa: ARG001 - whoever asks must have a key
    """What no tenant has, such as a base model of the Hub's."""
    raise no_repository(repository)


def _read(hub: Hub, snapshot: Snapshot, file: File, start: int) -> Iterator[bytes]:
    if file.stored is None:
        return iter([file.data[start:]])
    return hub.registry.stream(snapshot.version, file.stored, start)


async def _paths(request: Request) -> list[str]:
    """The paths that a form or a JSON body names."""
    body, kind = await request.body(), request.headers.get("content-type", "")
    try:
        if len(body) > LONGEST_PATHS:
            given = None
        elif "json" in kind:
            given = json.loads(body)["paths"]
        else:
            given = parse_qs(body.decode(), max_num_fields=MOST_PATHS + 10)["paths"]
    except (ValueError, TypeError, KeyError, RecursionError):
        given = None
    paths = [given] if isinstance(given, str) else given
    if not isinstance(paths, list) or len(paths) > MOST_PATHS or not all(isinstance(each, str) for each in paths):
        raise HubRefused(400, f"Give `paths`, a list of at most {MOST_PATHS} names of files, as JSON or as a form.")
    return list(dict.fromkeys(paths))


def _no_entry(path: str, snapshot: Snapshot) -> HubRefused:
    message = f"{snapshot.version} has no file {path[:200]!r}. It has {', '.join(snapshot.files)}."
    return HubRefused(404, message, "EntryNotFound", {"x-repo-commit": commit_of(snapshot.version.digest)})
