"""Tenants, keys, usage and the audit log over HTTP: shapes, isolation, limits, and no key where none belongs."""

import csv
import io
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from itertools import product
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from swapmeet.database import Database
from swapmeet.database.tables import KeyRow, Table
from swapmeet.database.tables.base import now
from swapmeet.gateway.app import create_app
from swapmeet.gateway.request_trace import log, log_to
from swapmeet.gateway.services import Services
from swapmeet.tenancy import OPERATOR, Tenancy
from swapmeet.tenancy.usage import KINDS
from swapmeet_registry import Fingerprint, Registry
from swapmeet_serving import Call, Chunk, join
from swapmeet_serving.errors import Overloaded

DIGEST = "sha256:" + "0" * 64
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}


class Counting:
    """Replicas that read four tokens and make three, in two pieces, unless they are broken."""

    broken: Exception | None = None

    async def generate(self, call: Call) -> AsyncIterator[Chunk]:
        for made, finish in ((1, None), (3, "stop")):
            if self.broken:
                raise self.broken
            yield Chunk(text="ok", token_ids=(1,), finish_reason=finish, prompt_tokens=4, completion_tokens=made)

    async def answer(self, call: Call) -> tuple[Chunk, ...]:
        return (join([each async for each in self.generate(call)]),)

    async def describe(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def replicas() -> Counting:
    return Counting()


@pytest.fixture
def books(database: Database) -> Tenancy:
    return Tenancy(database)


@pytest.fixture
def client(books: Tenancy, replicas: Counting, tmp_path: Path) -> Iterator[TestClient]:
    base = Fingerprint(name="tiny", weights=DIGEST, tokenizer=DIGEST)
    services = Services(Registry(f"file://{tmp_path}/registry"), books, base, replicas)  # type: ignore[arg-type]
    with TestClient(create_app(services), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def boss(books: Tenancy) -> str:
    books.tenants.ensure(OPERATOR)
    return books.keys.create(OPERATOR, ["owner"]).key


Ask = Callable[..., Any]


@pytest.fixture
def ask(client: TestClient, boss: str) -> Ask:
    """`ask("GET", path, key=…, json=…)`: as the operator, unless a key is given."""

    def call(method: str, path: str, key: str = boss, **more: Any) -> Any:
        return client.request(method, f"/v1/{path}", headers={"authorization": f"Bearer {key}"}, **more)

    return call


@pytest.fixture
def owner_of(ask: Ask) -> Callable[..., str]:
    """`owner_of("acme", "owner")`: a key, made as an operator makes it."""

    def make(tenant: str, *scopes: str, **quotas: int) -> str:
        assert ask("POST", "tenants", json={"name": tenant, "quotas": quotas}).status_code == 200
        made = ask("POST", "keys", json={"tenant": tenant, "scopes": scopes or ["owner"]})
        return str(made.json()["value"])

    return make


def error_of(answer: Any) -> tuple[int, str, str]:
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return answer.status_code, error["code"], error["message"]


def test_a_tenant_s_life(ask: Ask) -> None:
    made = ask("POST", "tenants", json={"name": "acme", "weight": 2, "quotas": {"stored_bytes": 10}})
    body = made.json()
    assert body.pop("created_at") > 1_700_000_000
    quotas = {
        "concurrent_runs": None, "gpu_seconds_a_day": None, "stored_bytes": 10, "tokens_a_minute": None,
        "requests_a_minute": None,
        "stored_versions": None,
    }  # fmt: skip
    assert body == {
        "id": "acme", "object": "tenant", "name": "acme", "weight": 2.0, "suspended_at": None, "quotas": quotas,
    }  # fmt: skip
    again = ask("POST", "tenants", json={"name": "acme", "weight": 2, "quotas": {"stored_bytes": 10}})
    assert again.json() == made.json()
    other = ask("POST", "tenants", json={"name": "acme"})
    assert error_of(other)[:2] == (409, "conflict")
    assert other.headers["x-should-retry"] == "false"
    change = {"quotas": {"stored_bytes": None, "concurrent_runs": 0}}
    changed = ask("POST", "tenants/acme", json=change).json()
    assert changed["quotas"] == quotas | {"stored_bytes": None, "concurrent_runs": 0}
    assert changed["weight"] == 2.0
    assert ask("POST", "tenants/acme", json={"suspended": True}).json()["suspended_at"]
    assert ask("POST", "tenants/acme", json={"suspended": False}).json()["suspended_at"] is None
    assert ask("GET", "tenants/acme").json()["quotas"] == changed["quotas"]
    assert [row["id"] for row in ask("GET", "tenants").json()["data"]] == ["acme", "admin"]
    page = ask("GET", "tenants?limit=1").json()
    assert (page["has_more"], page["first_id"], page["last_id"]) == (True, "acme", "acme")
    assert [row["id"] for row in ask("GET", "tenants?limit=1&after=acme").json()["data"]] == ["admin"]
    assert error_of(ask("GET", "tenants/ben"))[:2] == (404, "not_found")
    assert error_of(ask("POST", "tenants/ben", json={}))[:2] == (404, "not_found")
    assert error_of(ask("POST", "tenants/admin", json={"suspended": True}))[:2] == (403, "permission_denied")


WRONG: list[tuple[str, dict[str, Any], list[str]]] = [
    ("tenants", {}, ["name"]),
    ("tenants", {"name": "A/b", "weight": 0, "wieght": 1}, ["name", "weight", "wieght"]),
    ("tenants", {"name": "a", "quotas": {"stored_bytes": -1, "bytes": 1, "tokens_a_minute": 2**63}},
     ["quotas.stored_bytes", "quotas.bytes", "quotas.tokens_a_minute"]),
    ("tenants", {"name": "a", "weight": True, "quotas": {"concurrent_runs": "3"}},
     ["weight", "quotas.concurrent_runs"]),
    ("tenants/acme", {"name": "b"}, ["name"]),
    ("keys", {"scopes": []}, ["scopes"]),
    ("keys", {"scopes": ["infer", "root"], "name": "a\nb", "expires_in": 0}, ["scopes", "name", "expires_in"]),
    ("keys", {"scopes": ["infer"], "name": "x" * 201, "expires_in": 10**12}, ["name", "expires_in"]),
    ("keys", {"scopes": ["infer"], "tenant": "\0"}, ["tenant"]),
    ("keys/key-0/rotate", {"grace": -1}, ["grace"]),
]  # fmt: skip


def test_all_mistakes_are_told_at_once(ask: Ask) -> None:
    for path, body, params in WRONG:
        status, code, message = error_of(ask("POST", path, json=body))
        assert (status, code) == (400, "invalid_request")
        for param in params:
            assert f"{param}: " in message, message


def test_half_a_surrogate_pair_is_a_mistake_like_others(client: TestClient, boss: str) -> None:
    headers = {"authorization": f"Bearer {boss}", "content-type": "application/json"}
    for path, body in (
        ("tenants", {"name": "\ud800"}),
        ("keys", {"scopes": ["infer"], "tenant": "\ud800"}),
        ("keys", {"scopes": ["infer"], "name": "\ud800"}),
        ("keys", {"scopes": ["\ud800"]}),
    ):
        answer = client.post(f"/v1/{path}", content=json.dumps(body), headers=headers)
        assert error_of(answer)[:2] == (400, "invalid_request")


def test_a_key_s_life(ask: Ask, owner_of: Callable[..., str]) -> None:
    owner = owner_of("acme")
    answer = ask("POST", "keys", owner, json={"scopes": ["application"], "name": "the app", "expires_in": 3600})
    assert answer.headers["cache-control"] == "no-store"
    made = answer.json()
    key = made.pop("value")
    assert made["hint"] == key[-4:]
    assert (made["tenant"], made["scopes"], made["status"], made["name"]) == ("acme", ["infer"], "active", "the app")
    assert made["expires_at"] - made["created_at"] == 3600
    assert made["created_by"].startswith("key-")
    assert ask("GET", f"keys/{made['id']}", owner).json() == made
    assert ask("POST", "chat/completions", key, json=CHAT).status_code == 200
    rotated = ask("POST", f"keys/{made['id']}/rotate", owner, json={"grace": 60}).json()
    for each in (key, rotated["value"]):
        assert ask("POST", "chat/completions", each, json=CHAT).status_code == 200
    old = ask("GET", f"keys/{made['id']}", owner).json()
    assert old["replaced_by"] == rotated["id"]
    assert 0 < old["expires_at"] - rotated["created_at"] <= 60
    assert error_of(ask("POST", f"keys/{made['id']}/rotate", owner))[:2] == (409, "conflict")
    assert "value" not in str(ask("GET", "keys", owner).json())
    for _ in range(2):
        assert ask("DELETE", f"keys/{rotated['id']}", owner).json() == {
            "id": rotated["id"],
            "object": "key.deleted",
            "deleted": True,
        }
    assert error_of(ask("POST", "chat/completions", rotated["value"], json=CHAT))[:2] == (401, "invalid_api_key")
    assert ask("GET", f"keys/{rotated['id']}", owner).json()["status"] == "revoked"
    assert [row["id"] for row in ask("GET", "keys?limit=2", owner).json()["data"]] == [rotated["id"], made["id"]]


def test_who_gives_which_rights(ask: Ask, owner_of: Callable[..., str]) -> None:
    owner, developer = owner_of("acme"), owner_of("acme", "developer")
    assert ask("POST", "keys", owner, json={"scopes": ["owner"]}).status_code == 200
    assert error_of(ask("POST", "keys", developer, json={"scopes": ["infer"]}))[:2] == (403, "permission_denied")
    assert error_of(ask("POST", "keys", owner, json={"scopes": ["metrics"]}))[:2] == (403, "permission_denied")
    assert ask("POST", "keys", json={"scopes": ["metrics"], "tenant": "acme"}).status_code == 200
    for change in ({"weight": 1000}, {"suspended": False}):
        assert error_of(ask("POST", "tenants/acme", owner, json=change))[:2] == (403, "permission_denied")


def test_what_is_another_tenant_s_is_as_if_it_did_not_exist(ask: Ask, owner_of: Callable[..., str]) -> None:
    acme, ben = owner_of("acme"), owner_of("ben")
    theirs = ask("GET", "keys", ben).json()["data"][0]["id"]
    for method, path, body in (
        ("GET", "tenants/{}", None),
        ("GET", "keys?tenant={}", None),
        ("POST", "keys", {"scopes": ["infer"], "tenant": "{}"}),
        ("GET", "usage?tenant={}", None),
        ("GET", "audit?tenant={}", None),
        ("GET", "keys/{}", None),
        ("DELETE", "keys/{}", None),
        ("POST", "keys/{}/rotate", None),
        ("GET", "keys?after={}", None),
    ):
        real, made_up = (theirs, "key-123abc") if "keys/" in path or "after" in path else ("ben", "bob")

        def told(name: str, method: str = method, path: str = path, body: Any = body) -> tuple[int, str]:
            sent = json.loads(json.dumps(body).replace("{}", name))
            answer = ask(method, path.format(name), acme, json=sent)
            return answer.status_code, answer.text.replace(name, "X")

        assert told(real) == told(made_up), path
        assert told(real)[0] == 404, path
    assert [row["id"] for row in ask("GET", "tenants", acme).json()["data"]] == ["acme"]
    assert {row["tenant"] for row in ask("GET", "keys", acme).json()["data"]} == {"acme"}
    assert {row["tenant"] for row in ask("GET", "audit", acme).json()["data"]} == {"acme"}
    assert ask("GET", f"keys/{theirs}", ben).json()["status"] == "active"
    assert {row["tenant"] for row in ask("GET", "keys").json()["data"]} == {"acme", "ben", OPERATOR}


ODD = ["%00", "%ff", "..", "key-", "sm-x", "key-0%0a", "\u00fc", "x" * 3000]


def test_odd_names_in_paths_and_queries_are_no_failures(ask: Ask) -> None:
    paths = (
        ("GET", "tenants/{}"),
        ("POST", "tenants/{}"),
        ("GET", "keys/{}"),
        ("DELETE", "keys/{}"),
        ("POST", "keys/{}/rotate"),
        ("GET", "keys?after={}"),
        ("GET", "keys?tenant={}"),
        ("GET", "tenants?after={}"),
        ("GET", "usage?tenant={}"),
        ("GET", "usage?start={}"),
        ("GET", "audit?after={}"),
        ("GET", "audit?action={}"),
        ("GET", "models/{}"),
    )
    for name, (method, path) in product(ODD, paths):
        answer = ask(method, path.format(name), json={} if path == "tenants/{}" else None)
        assert answer.status_code in (200, 400, 404, 405), (path, answer.text)


def test_the_owner_sees_what_was_done_and_by_whom(ask: Ask, owner_of: Callable[..., str], books: Tenancy) -> None:
    owner, app = owner_of("acme"), owner_of("acme", "infer")
    ask("POST", "tenants/acme", owner, json={"weight": 3})
    ask("GET", "audit", app)
    ask("POST", "tenants/acme", json={"weight": 3})
    books.flush()
    entries = ask("GET", "audit", owner).json()["data"]
    found = [(each["actor"]["tenant"], each["action"], each["outcome"]) for each in entries]
    assert sorted(found[:3]) == [
        ("acme", "GET /v1/audit", "refused"),
        ("acme", "POST /v1/tenants/{name}", "refused"),
        (OPERATOR, "tenant.change", "done"),
    ]
    assert found[3:] == [(OPERATOR, "key.create", "done")] * 2 + [(OPERATOR, "tenant.create", "done")]
    assert all(each["request"] and each["actor"]["key"].startswith("key-") for each in entries)
    page = ask("GET", "audit?limit=4", owner).json()
    rest = ask("GET", f"audit?limit=4&after={page['last_id']}", owner).json()
    assert (page["has_more"], rest["has_more"]) == (True, False)
    assert page["data"] + rest["data"] == entries


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_counted_by_key_and_model(
    ask: Ask, owner_of: Callable[..., str], books: Tenancy, replicas: Counting, stream: bool
) -> None:
    owner = owner_of("acme")
    for _ in range(2):
        assert ask("POST", "chat/completions", owner, json=CHAT | {"stream": stream}).status_code == 200
    ask("POST", "completions", owner, json={"model": "tiny", "prompt": ["a", "b"], "n": 1, "stream": stream})
    replicas.broken = Overloaded("Full.")
    assert ask("POST", "chat/completions", owner, json=CHAT | {"stream": stream}).status_code == 503
    books.flush()
    row = {"object": "usage", **dict.fromkeys(KINDS, 0)}
    row |= {"inference_requests": 3, "inference_prompt_tokens": 16, "inference_output_tokens": 12}
    answer = ask("GET", "usage", owner).json()
    assert answer["data"] == [row]
    assert answer["end"] - answer["start"] == 30 * 86400
    keys = {each["id"] for each in ask("GET", "keys", owner).json()["data"]}
    (found,) = ask("GET", "usage?by=adapter&by=key&by=adapter", owner).json()["data"]
    assert found["key"] in keys
    assert found["adapter"] == "tiny"
    assert ask("GET", "usage?start=2020-01-01&end=2020-02-01", owner).json()["data"] == [
        {"object": "usage", **dict.fromkeys(KINDS, 0)}
    ]
    table = ask("GET", "usage?by=tenant&format=csv")
    assert table.headers["content-type"].startswith("text/csv")
    (line,) = csv.DictReader(io.StringIO(table.text))
    assert (line["tenant"], line["inference_output_tokens"]) == ("acme", "12")
    assert ask("GET", "usage?owned=true&by=adapter", owner).json()["data"] == []
    assert error_of(ask("GET", "usage?owned=true&by=key", owner))[0] == 400
    assert error_of(ask("GET", "usage?start=2026-02-01&end=2026-01-01", owner))[0] == 400
    assert error_of(ask("GET", "usage?start=0001-01-01T00:00:00%2B23:00", owner))[0] == 400


def test_requests_a_minute(client: TestClient, ask: Ask, owner_of: Callable[..., str]) -> None:
    key = owner_of("acme", "infer", requests_a_minute=2)
    headers = ask("POST", "chat/completions", key, json=CHAT).headers
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("2", "1")
    streamed = ask("POST", "chat/completions", key, json=CHAT | {"stream": True})
    assert streamed.headers["x-ratelimit-remaining-requests"] == "0"
    refused = ask("POST", "completions", key, json={"model": "tiny", "prompt": "x"})
    assert error_of(refused)[:2] == (429, "rate_limit_exceeded")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert ask("GET", "models", key).status_code == 200, "only answers are counted"
    assert "x-ratelimit-limit-requests" not in ask("POST", "chat/completions", json=CHAT).headers
    official = openai.OpenAI(api_key=key, base_url="http://testserver/v1", max_retries=0, http_client=client)
    with pytest.raises(openai.RateLimitError, match="2 requests a minute"):
        official.completions.create(model="tiny", prompt="x")


def test_tokens_a_minute(ask: Ask, owner_of: Callable[..., str]) -> None:
    key = owner_of("acme", "infer", tokens_a_minute=10)
    remaining = [
        ask("POST", "chat/completions", key, json=CHAT).headers["x-ratelimit-remaining-tokens"] for _ in range(2)
    ]
    assert remaining == ["10", "3"]
    refused = ask("POST", "chat/completions", key, json=CHAT)
    assert error_of(refused)[:2] == (429, "rate_limit_exceeded")
    assert "10 tokens a minute" in error_of(refused)[2]


def test_no_key_is_where_none_belongs(
    ask: Ask,
    client: TestClient,
    owner_of: Callable[..., str],
    books: Tenancy,
    boss: str,
    replicas: Counting,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    caplog.set_level(logging.DEBUG)
    log_to(tmp_path / "logs" / "requests.jsonl")
    owner = owner_of("acme")
    made = ask("POST", "keys", owner, json={"scopes": ["developer"]}).json()
    rotated = ask("POST", f"keys/{made['id']}/rotate", owner).json()
    keys = [boss, owner, made["value"], rotated["value"]]
    answers = [ask("GET", path, owner) for path in ("keys", "usage?by=key", "audit", "tenants", "models")]
    for key in keys:
        for method, path in (("GET", "keys/{}"), ("DELETE", "keys/{}"), ("GET", "models/{}"), ("GET", "tenants/{}")):
            ask(method, path.format(key), made["value"])
        answers += [ask("POST", "tenants", owner, json={"name": "x"}), ask("GET", "models", key + "x")]
        answers += [ask("GET", f"keys/{key}", owner), ask("GET", f"keys?after={key}", owner)]
        ask("POST", "chat/completions", key, json=CHAT | {"model": f"acme/{key}"})
        ask("POST", "chat/completions", key, json=CHAT)
        header = {"authorization": f"Bearer {made['value']}", "x-request-id": f"mine-{key}"}
        assert client.get("/v1/audit", headers=header).status_code == 403
        assert key not in client.get("/v1/models", headers=header).headers["x-request-id"]
    replicas.broken = KeyError("the log says more")
    answers.append(ask("POST", "chat/completions", owner, json=CHAT))
    ask("DELETE", f"keys/{rotated['id']}", owner)
    books.flush()
    answers.append(ask("GET", "audit", owner))
    for handler in [each for each in log.handlers if isinstance(each, RotatingFileHandler)]:
        log.removeHandler(handler)
        handler.close()

    def stored(session: Any) -> str:
        return "\n".join(str(row) for table in Table.metadata.sorted_tables for row in session.execute(select(table)))

    database = books.database.read(stored)
    digests = books.database.read(lambda session: list(session.scalars(select(KeyRow.digest))))
    texts = {
        "database": database,
        "answers": "".join(each.text for each in answers),
        "requests": (tmp_path / "logs" / "requests.jsonl").read_text(),
        "log": "\n".join(each.getMessage() for each in caplog.records if not each.name.startswith("httpx")),
    }
    for place, text in texts.items():
        assert text, place
        assert [key[-4:] for key in keys if key in text] == [], place
        assert place == "database" or not any(digest in text for digest in digests), place
    assert all(key[-4:] in database for key in keys), "hints are there: the search would find more"
    if books.database.url.startswith("sqlite"):
        files = [path for path in tmp_path.glob("*.db*") if path.is_file()]
        assert any(digests[0].encode() in path.read_bytes() for path in files)
        assert not any(key.encode() in path.read_bytes() for path in files for key in keys)


def test_what_was_counted_is_written_when_the_gateway_stops(
    books: Tenancy, boss: str, replicas: Counting, tmp_path: Path
) -> None:
    base = Fingerprint(name="tiny", weights=DIGEST, tokenizer=DIGEST)
    services = Services(Registry(f"file://{tmp_path}/registry"), books, base, replicas)  # type: ignore[arg-type]
    with TestClient(create_app(services)) as client:
        client.post("/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {boss}"})
    (row,) = books.usage.report(now() - timedelta(minutes=5), now() + timedelta(minutes=5))
    assert row["inference_requests"] == 1
