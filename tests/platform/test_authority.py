"""Every route has an authority; whose things are whose; and what is another's is as if it did not exist."""

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.testclient import TestClient

from swapmeet.database.tables import PermissionRow
from swapmeet.gateway.app import create_app
from swapmeet.gateway.authority import Authority, Caller, may, operator
from swapmeet.gateway.services import Services
from swapmeet.tenancy import OPERATOR, Tenancy
from swapmeet_registry import Fingerprint, Registry
from swapmeet_registry.fingerprint import fingerprint
from swapmeet_serving import Call, Chunk, join

DIGEST = "sha256:" + "0" * 64
OPEN = {"/healthz", "/readyz", "/docs", "/docs/oauth2-redirect", "/openapi.json"}
"""What needs no key; `/metrics` neither, where the operator says so."""
MESSAGES = [{"role": "user", "content": "Hello"}]


class Echo:
    """Replicas that answer with the name of what answers."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    async def generate(self, call: Call) -> AsyncIterator[Chunk]:
        self.calls.append(call)
        yield Chunk(text="ok", token_ids=(1,), finish_reason="stop", prompt_tokens=4, completion_tokens=1)

    async def answer(self, call: Call) -> tuple[Chunk, ...]:
        return (join([each async for each in self.generate(call)]),)

    async def describe(self) -> dict[str, Any]:
        return {}

    async def measurements(self) -> list[Any]:
        return []

    async def state(self) -> str:
        return "ready"


@pytest.fixture
def replicas() -> Echo:
    return Echo()


@pytest.fixture
def services(replicas: Echo, tenancy: Tenancy, tmp_path: Path) -> Services:
    base = Fingerprint(name="tiny", weights=DIGEST, tokenizer=DIGEST)
    return Services(Registry(f"file://{tmp_path}/registry"), tenancy, base, replicas)


@pytest.fixture
def client(services: Services) -> Iterator[TestClient]:
    with TestClient(create_app(services), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def ask(client: TestClient) -> Callable[..., Any]:
    """`ask(key, "GET", path, …)`"""

    def call(key: str, method: str, path: str, **more: Any) -> Any:
        return client.request(method, path, headers={"authorization": f"Bearer {key}"}, **more)

    return call


@pytest.fixture(scope="module")
def published(tiny_llama: Path, random_lora: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with one adapter of acme's, one of ben's and one of the operator's."""
    folder = tmp_path_factory.mktemp("published")
    lora, registry = random_lora(tiny_llama, folder / "lora", rank=4), Registry(f"file://{folder}/registry")
    for name in ("acme/legal", "ben/mine", "admin/shown"):
        registry.push(lora, name, base=fingerprint(tiny_llama, "tiny"), alias="prod")
    return folder / "registry"


@pytest.fixture
def registry(published: Path, tmp_path: Path, services: Services) -> Registry:
    shutil.copytree(published, tmp_path / "registry", dirs_exist_ok=True)
    return services.registry


def authorities(dependant: Dependant) -> list[Authority]:
    found = [dependant.call] if isinstance(dependant.call, Authority) else []
    return found + [each for inner in dependant.dependencies for each in authorities(inner)]


def unguarded(app: FastAPI) -> set[str]:
    """The paths of all routes that anybody may use; what is no plain route is taken for one."""
    return {
        route.path or repr(route.original_route)
        for route in iter_route_contexts(app.routes)
        if not (isinstance(route.original_route, APIRoute) and authorities(route.dependant))
    }


def test_every_route_has_an_authority(services: Services) -> None:
    assert unguarded(create_app(services)) == OPEN
    assert unguarded(create_app(services, metrics_public=True)) == OPEN | {"/metrics"}


def test_a_route_without_an_authority_would_be_found(services: Services) -> None:
    app, router = create_app(services), APIRouter()
    guarded = APIRouter(dependencies=[Depends(may("read"))])

    async def caller(who: Annotated[Caller, Depends(operator)]) -> str:
        return who.tenant

    router.add_api_route("/v1/forgotten", lambda: None)
    router.add_api_route("/v1/own", caller)
    router.add_api_route("/v1/indirect", lambda name: name, dependencies=[Depends(caller)])
    guarded.add_api_route("/v1/guarded", lambda: None)
    for each in (router, guarded):
        app.include_router(each)
    app.mount("/mounted", FastAPI())
    assert unguarded(app) - OPEN == {"/v1/forgotten", "/mounted"}


def test_the_api_s_description_says_which_routes_want_a_key(services: Services) -> None:
    described = create_app(services).openapi()
    assert described["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    open_ = {path for path, each in described["paths"].items() if any(not way.get("security") for way in each.values())}
    assert open_ == {"/healthz", "/readyz"}


def test_an_authority_names_scopes_that_exist() -> None:
    with pytest.raises(ValueError, match="infre"):
        may("infre")


ROUTES: list[tuple[str, str, set[str]]] = [
    ("POST", "/v1/chat/completions", {"infer"}),
    ("POST", "/v1/completions", {"infer"}),
    ("GET", "/v1/models", {"infer", "read", "train", "publish", "admin"}),
    ("GET", "/v1/models/tiny", {"infer", "read", "train", "publish", "admin"}),
    ("GET", "/v1/tenants", {"read", "train", "publish", "admin"}),
    ("GET", "/v1/usage", {"read", "train", "publish", "admin"}),
    ("POST", "/v1/tenants", set()),
    ("POST", "/v1/tenants/acme", set()),
    ("POST", "/v1/keys", {"admin"}),
    ("GET", "/v1/keys", {"admin"}),
    ("GET", "/v1/keys/key-0", {"admin"}),
    ("DELETE", "/v1/keys/key-0", {"admin"}),
    ("POST", "/v1/keys/key-0/rotate", {"admin"}),
    ("GET", "/v1/audit", {"admin"}),
    ("GET", "/metrics", {"metrics"}),
]


@pytest.mark.parametrize("scope", ["infer", "read", "train", "publish", "admin", "metrics"])
def test_a_key_may_what_its_scope_says_and_no_more(
    scope: str, ask: Callable[..., Any], key_of: Callable[..., str]
) -> None:
    key = key_of("acme", scope)
    for method, path, scopes in ROUTES:
        answer = ask(key, method, path)
        assert (answer.status_code == 403) == (scope not in scopes), (path, answer.text)
        if answer.status_code == 403:
            assert answer.json()["error"]["code"] == "permission_denied"
            assert answer.json()["error"]["type"] == "permission_error"


def test_the_operator_may_everything(ask: Callable[..., Any], key_of: Callable[..., str]) -> None:
    key = key_of(OPERATOR, "admin")
    assert {ask(key, method, path).status_code for method, path, _ in ROUTES} <= {200, 400, 404}


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic {}", "{}", "Bearer x{}", "Bearer {}\u00fc"])
def test_without_a_good_key_nothing_passes(client: TestClient, key_of: Callable[..., str], header: str | None) -> None:
    key = key_of(OPERATOR, "admin")
    headers = {} if header is None else {"authorization": header.format(key).encode("latin-1")}
    for method, path, _ in ROUTES:
        answer = client.request(method, path, headers=headers)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert key not in answer.text


def test_the_scheme_is_written_in_any_case(client: TestClient, key_of: Callable[..., str]) -> None:
    headers = {"authorization": f"bearer  {key_of('acme', 'infer')} "}
    assert client.get("/v1/models", headers=headers).status_code == 200


def test_a_suspended_tenant_is_told_so(ask: Callable[..., Any], key_of: Callable[..., str], tenancy: Tenancy) -> None:
    key, boss = key_of("acme", "owner"), Caller(OPERATOR, "", frozenset({"admin"}))
    tenancy.tenants.change("acme", {}, boss, suspended=True)
    for path in ("/v1/models", "/v1/keys"):
        answer = ask(key, "GET", path)
        assert answer.status_code == 403
        assert "'acme' is suspended" in answer.json()["error"]["message"]


@pytest.mark.usefixtures("registry")
def test_models_are_those_that_the_caller_may_use(ask: Callable[..., Any], key_of: Callable[..., str]) -> None:
    listed = {
        tenant: [each["id"] for each in ask(key_of(tenant, scope), "GET", "/v1/models").json()["data"]]
        for tenant, scope in (("acme", "infer"), ("ben", "read"), ("cara", "infer"), (OPERATOR, "admin"))
    }
    assert listed == {
        "acme": ["tiny", "acme/legal"],
        "ben": ["tiny", "ben/mine"],
        "cara": ["tiny"],
        OPERATOR: ["tiny", "admin/shown", "acme/legal", "ben/mine"],
    }


SUFFIXES = ["", ":1", ":2", ":prod", ":latest", ":absent", f"@{DIGEST}", "*0.5", ":1*0.5+acme/legal*0.5"]


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("owner", ["ben/mine", "admin/shown"])
def test_what_is_another_s_is_told_word_for_word_as_what_does_not_exist(
    owner: str, suffix: str, ask: Callable[..., Any], key_of: Callable[..., str], replicas: Echo
) -> None:
    key = key_of("acme", "infer", "read")
    tenant, name = owner.split("/")
    absent = f"{tenant}/{'x' * len(name)}"

    def told(model: str) -> list[tuple[int, str, dict[str, str]]]:
        chat = {"model": model, "messages": MESSAGES}
        answers = [
            ask(key, "POST", "/v1/chat/completions", json=chat),
            ask(key, "POST", "/v1/chat/completions", json=chat | {"stream": True}),
            ask(key, "POST", "/v1/completions", json={"model": model, "prompt": "x"}),
            ask(key, "GET", f"/v1/models/{model}"),
        ]
        ids = {"x-request-id", "date"}
        headers = [{name: value for name, value in each.headers.items() if name not in ids} for each in answers]
        texts = [each.text.replace(absent, owner) for each in answers]
        return [(each.status_code, text, head) for each, text, head in zip(answers, texts, headers, strict=True)]

    assert told(owner + suffix) == told(absent + suffix)
    for status, text, _ in told(owner + suffix):
        assert (status, '"code":"model_not_found"' in text) == (404, True), text
    assert replicas.calls == []


@pytest.mark.usefixtures("registry")
def test_own_adapters_answer_and_so_do_shared_ones(
    ask: Callable[..., Any], key_of: Callable[..., str], tenancy: Tenancy
) -> None:
    def status(model: str) -> int:
        body = {"model": model, "messages": MESSAGES}
        return int(ask(key, "POST", "/v1/chat/completions", json=body).status_code)

    key = key_of("acme", "application")
    for number, model in enumerate(("ben/mine:1", "ben/gone")):
        shared = PermissionRow(id=f"cp-{number}", model=model, project="acme")
        tenancy.database.write(lambda session, shared=shared: session.merge(shared))  # type: ignore[misc]
    assert [status(model) for model in ("tiny", "acme/legal", "acme/legal:prod", "ben/mine:1")] == [200] * 4
    assert [status(model) for model in ("ben/mine", "ben/mine:prod", "acme/legal:1*0.5+ben/mine*0.5")] == [404] * 3
    assert status("acme/legal:1*0.5+ben/mine:1*0.5") == 200
    assert status("ben/gone") == 404
    listed = [each["id"] for each in ask(key, "GET", "/v1/models").json()["data"]]
    assert listed == ["tiny", "acme/legal", "ben/mine:1"]
