"""Of another tenant's things nobody learns whether they exist, and nobody changes them: every operation of the API.

The requests come from the API's own description. For every place in it that an id may stand in, a tenant sends the id
of another's thing, and one that nobody has: status, headers and body must be the same, and so must the work that is
done for the answer: the statements to the database and the calls of the store, by which else the time would tell. What
the description has that is not known here is a failure, so no route is left out.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from sqlalchemy import event, select

from swapmeet.database.tables import Table
from swapmeet_registry.stores.local import LocalStore

pytestmark = pytest.mark.slow
OWNER, OTHER, FRIEND = "zulu", "ben", "carol"
"""Whose things it is about; who is after them; and a tenant that both share something with."""


@dataclass(frozen=True)
class Id:
    """In a body: the id of a thing."""

    kind: str


PARAMETERS = {
    "file_id": "file", "job_id": "job", "key": "key", "model": "model", "name": "tenant", "owner": "tenant",
    "permission": "permission", "project_id": "tenant", "sweep_id": "sweep", "tenant": "tenant",
    "upload": "adapter_upload", "upload_id": "upload",
}  # fmt: skip
"""Parameters that are ids, and of what."""
AFTER = {
    "adapters": "model", "audit": "audit", "checkpoints": "checkpoint", "events": "event", "files": "file",
    "jobs": "job", "keys": "key", "permissions": "permission", "sweeps": "sweep", "tenants": "tenant",
    "webhook_endpoints": "endpoint", "webhooks": "webhook",
}  # fmt: skip
"""What a list goes on after, by the last part of its path."""
CONSTANTS = {
    "adapter": "legal", "alias": "prod", "path": "adapter_config.json", "ref": "1", "sha256": "0" * 64,
    "signer": "0" * 64, "withdrawal": "yank",
}  # fmt: skip
"""Parts of paths that are no ids of their own, and what both the owner and the other have by these names."""
PLAIN = {
    "action", "advice", "attempt", "base", "by", "cursor", "end", "expect", "format", "idempotency-key",
    "if-none-match", "if-range", "license", "limit", "links", "metric", "offset", "order", "owned", "purpose", "query",
    "range", "rank_max", "rank_min", "size_max", "size_min", "skip", "sort", "start", "tag", "tail", "task", "version",
    "versions", "x-content-sha256", *CONSTANTS,
}  # fmt: skip
"""Parameters that are no ids."""
ADAPTER = "/v1/adapters/{owner}/{adapter}"
COMING = {"base": "tiny", "files": [{"path": "adapter_config.json", "size": 1, "sha256": "0" * 64}]}
CHAT = [{"role": "user", "content": "Hello"}]
JOB = {"model": Id("model"), "training_file": Id("file"), "validation_file": Id("held_out")}
JOB |= {"lora": {"name": Id("adapter")}}
SWEEP = {**JOB, "sweep": {"grid": {"rank": [2, 4]}}}
HOOK = {"url": "http://127.0.0.1:9/"}
BODIES: dict[str, Any] = {
    f"{ADAPTER}/aliases/{{alias}}": {"version": 1},
    f"{ADAPTER}/uploads": COMING,
    f"{ADAPTER}/versions/{{ref}}/signatures": {"public_key": "none", "bundle": "none"},
    f"{ADAPTER}/versions/{{ref}}/{{withdrawal}}": {"reason": "wrong"},
    f"{ADAPTER}/visibility": {"visibility": "public"},  # sharing takes names of tenants
    "/v1/chat/completions": {"model": Id("model"), "messages": CHAT},
    "/v1/completions": {"model": Id("model"), "prompt": "Hello"},
    "/v1/fine_tuning/checkpoints/{model}/permissions": {"project_ids": [FRIEND]},  # sharing takes names of tenants
    "/v1/fine_tuning/jobs": JOB,
    "/v1/fine_tuning/plan": JOB,
    "/v1/fine_tuning/sweeps": SWEEP,
    "/v1/fine_tuning/sweeps/plan": SWEEP,
    "/v1/keys": {"scopes": ["infer"], "tenant": Id("tenant")},
    "/v1/keys/{key}/rotate": {},
    "/v1/tenants": {"name": Id("tenant")},
    "/v1/tenants/{name}": {"weight": 2},
    "/v1/uploads": {"bytes": 1, "filename": "a", "mime_type": "text/plain", "purpose": "user_data"},
    "/v1/uploads/{upload_id}/complete": {"part_ids": [Id("part")]},
    "/v1/webhook_endpoints": HOOK,
    "/v1/webhook_endpoints/{webhook}": {"name": "changed"},
    "/v1/webhook_endpoints/{webhook}/rotate_secret": {},
    "/v1/webhook_endpoints/{webhook}/test": {},
    "/v1/webhooks": HOOK,
    "/v1/webhooks/{webhook}": {"name": "changed"},
    "/v1/webhooks/{webhook}/rotate_secret": {},
    "/v1/webhooks/{webhook}/test": {},
}
"""What is sent as JSON."""
FORMS: dict[str, Any] = {
    f"{ADAPTER}/uploads/{{upload}}/files/{{path}}": {"content": b"a"},
    "/v1/files": {"files": {"file": ("a.txt", b"a")}, "data": {"purpose": "user_data"}},
    "/v1/uploads/{upload_id}/parts": {"files": {"data": ("blob", b"a")}},
}
FIELDS = {
    "", "alias", "base", "best_of", "bundle", "bytes", "data", "echo", "event_type", "event_types", "expect",
    "expires_after", "expires_after[anchor]", "expires_after[seconds]", "expires_in", "file", "filename", "files",
    "frequency_penalty", "function_call", "functions", "grace", "guided_choice", "guided_grammar", "guided_json",
    "guided_regex", "hyperparameters", "ignore_eos", "integrations", "keep_old_secret_active_for_24_hours",
    "license", "logit_bias", "logprobs", "lora", "max_completion_tokens", "max_tokens", "md5", "messages",
    "metadata", "method", "mime_type", "min_p", "modalities", "model", "n", "name", "parallel_tool_calls",
    "part_ids", "presence_penalty", "project_ids", "prompt", "prompt_cache_key", "public_key", "purpose", "quotas",
    "reason", "repetition_penalty", "response_format", "return_token_ids", "run", "safety_identifier", "scopes", "seed",
    "service_tier", "stop", "store", "stream", "stream_options", "structured_outputs", "suffix", "suspended",
    "sweep", "tags", "temperature", "tenant", "tenants", "tool_choice", "tools", "top_k", "top_logprobs", "top_p",
    "training_file", "url", "user", "validation_file", "verbosity", "version", "visibility", "weight",
}  # fmt: skip
"""Fields of bodies, of which `BODIES` has those that are ids."""
OPERATORS = {("POST", "/v1/tenants"), ("POST", "/v1/tenants/{name}"), ("GET", "/metrics")}
"""What only the operator may do: another is told no more than that."""
POSITIONS = {("/v1/adapters", "after"), ("/v1/tenants", "after"), ("/v1/files", "after"), ("/v1/audit", "after")}
"""Ids that say by themselves where a list goes on, so that one which is gone is as good."""
FILTERS = {
    ("/v1/adapters", "owner"), ("/v1/search", "owner"),
    ("/v1/fine_tuning/checkpoints/{model}/permissions", "project_id"),
}  # fmt: skip
"""Ids that narrow a list down, where nobody's is as good."""


WORK: ContextVar[list[str] | None] = ContextVar("work", default=None)
"""What was done for the request that is under way, wherever it is carried on."""
APART = {"date", "x-request-id", "openai-processing-ms"}
"""Headers that differ from each answer to the next."""
STORE = ("get", "stream", "list", "scan", "size", "put", "swap", "delete")


class Answer(NamedTuple):
    """Of a request, with what it named left out; and the work that was done for it."""

    status: int
    text: str
    headers: dict[str, str]
    work: list[str]


@dataclass(frozen=True)
class Operation:
    """One of the API, and the places in it that ids stand in, each with its kind."""

    method: str
    path: str
    inside: dict[str, str]
    query: dict[str, str]
    body: dict[str, str]

    @property
    def places(self) -> dict[str, str]:
        return self.inside | self.query | self.body

    def send(self, platform: Any, who: str, ids: dict[str, str]) -> "Answer":
        """The answer with these ids, by place; a query's are left out where none is given."""
        path = self.path
        for name, value in {**CONSTANTS, **ids}.items():
            if name in CONSTANTS or name in self.inside:
                path = path.replace(f"{{{name}}}", quote(value, safe="/:@"))
        more: dict[str, Any] = {"params": {name: ids[name] for name in self.query if name in ids}}
        if self.path in FORMS and self.method in ("POST", "PUT"):
            more |= FORMS[self.path]
        elif self.path in BODIES and self.method in ("POST", "PUT"):
            more["json"] = fill(BODIES[self.path], ids)
        token = WORK.set(work := [])
        answer = platform.ask(who, self.method, path, **more)
        WORK.reset(token)
        text = answer.text
        for name, value in ids.items():
            text = text.replace(value, f"<{name}>") if name in CONSTANTS else text
            for each in (value, quote(value), re.split("[:@*]", value)[0]) if name in self.places else ():
                text = text.replace(each, f"<{name}>")
        headers = {name: value for name, value in answer.headers.items() if name not in APART}
        headers.pop("content-length", None)  # of a body that names what was asked for
        return Answer(answer.status_code, text, headers, sorted(work))


def fill(template: Any, ids: dict[str, str], place: str = "body") -> Any:
    """A body with ids in it."""
    if isinstance(template, Id):
        return ids[place]
    if isinstance(template, dict):
        return {name: fill(value, ids, f"{place}.{name}") for name, value in template.items()}
    return [fill(each, ids, place) for each in template] if isinstance(template, list) else template


def marked(template: Any, place: str = "body") -> Iterator[tuple[str, str]]:
    """Where ids stand in a body, and their kinds."""
    if isinstance(template, Id):
        yield place, template.kind
    for name, value in template.items() if isinstance(template, dict) else ():
        yield from marked(value, f"{place}.{name}")
    for each in template if isinstance(template, list) else ():
        yield from marked(each, place)


def operations(document: dict[str, Any]) -> list[Operation]:
    """All of the API; those that look, before those that change, before those that delete."""
    found = []
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            places: dict[str, dict[str, str]] = {"path": {}, "query": {}, "header": {}}
            for parameter in described.get("parameters", []):
                if kind := kind_of(path, parameter["name"]):
                    places[parameter["in"]][parameter["name"]] = kind
            if "requestBody" in described:
                assert path in BODIES or path in FORMS, f"say what is sent to {path}"
                require_known(described["requestBody"]["content"], document, path)
            assert not places["header"]
            body = dict(marked(BODIES.get(path))) if "requestBody" in described else {}
            found.append(Operation(method.upper(), path, places["path"], places["query"], body))
    return sorted(found, key=lambda each: ["GET", "PUT", "POST", "DELETE"].index(each.method))


def kind_of(path: str, name: str) -> str | None:
    """Of what a parameter is an id."""
    if name in PLAIN:
        return None
    hook = "endpoint" if "webhook_endpoints" in path else "webhook"
    last = path.rpartition("/")[2]
    if name == "webhook":
        return hook
    if name == "delivery" or (name == "after" and last == "deliveries"):
        return f"{hook}_delivery"
    if name == "after" and path.endswith("/{sweep_id}/events"):
        return "sweep_event"
    known = AFTER.get(last) if name == "after" else PARAMETERS.get(name)
    assert known, f"say of what {name} in {path} is an id, or that it is none"
    return known


def require_known(content: dict[str, Any], document: dict[str, Any], path: str) -> None:
    """Fail at fields of a body that nobody has looked at."""
    for media in content.values():
        for schema in [media["schema"], *media["schema"].get("anyOf", [])]:
            named = document["components"]["schemas"].get(schema.get("$ref", "").rpartition("/")[2], schema)
            assert set(named.get("properties", {})) <= FIELDS, f"say which fields are ids in a body for {path}"


def spellings(kind: str, own: dict[str, str], mine: dict[str, str]) -> list[tuple[str, str]]:
    """Ids of a kind that are another's, each with one as like it as can be that nobody has."""
    if kind == "audit":
        return [(own["audit"], f"audit-{10**9}")]
    if kind == "tenant":
        return [(OWNER, "zula")]
    if kind == "adapter":
        return [(f"{OWNER}/new", "zula/new")]
    if kind == "model":
        known = [own["model"], own["model"] + ":1", own["model"] + ":prod", own["pinned"]]
        known += [f"{own['model']}*0.5+{mine['model']}*0.5"]
        return [(each, each.replace(f"{OWNER}/legal", f"{OWNER}/legam")) for each in known] + [
            (own["model"], "zula/legal")
        ]
    return [(own[kind], own[kind][:-1] + ("0" if own[kind][-1] != "0" else "1"))]


def defaults(operation: Operation, own: dict[str, str]) -> dict[str, str]:
    """A tenant's own ids in all places but the query's."""
    given = own | {"adapter": f"{own['tenant']}/new"}
    return {place: given[kind] for place, kind in (operation.inside | operation.body).items()}


def state_of(platform: Any, own: dict[str, str]) -> dict[str, str]:
    """All that is kept of a tenant's: rows and files."""
    marks = [*own.values(), OWNER]

    def rows(session: Any) -> list[str]:
        return [
            f"{table.name} {row}"
            for table in Table.metadata.sorted_tables
            if table.name != "adapter_likes"  # whoever may read an adapter may like it
            # a key's last use is noted some time after it
            for row in session.execute(select(*(column for column in table.c if column.name != "last_used_at")))
            if any(mark in str(row) for mark in marks)
        ]

    kept = dict.fromkeys(platform.tenancy.database.read(rows), "")
    for folder in ("registry", "storage"):
        for path in sorted(Path(platform.home, folder).rglob("*")):
            if path.is_file() and any(mark in str(path) for mark in marks):
                kept[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return kept


@pytest.fixture(scope="module")
def platform(shared_platform: Any) -> Iterator[Any]:
    """The platform, which notes what is done for each request."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("swapmeet.tenancy.tenancy.FLUSH_SECONDS", 1e6)  # the books of lists that are compared
        patch.setattr("swapmeet.tenancy.keys.KNOWN_SECONDS", 1e6)  # who asks is not looked up again now and then
        for name in STORE:
            patch.setattr(LocalStore, name, noted(getattr(LocalStore, name), name))
        event.listen(shared_platform.tenancy.database.engine, "before_cursor_execute", note_statement)
        yield shared_platform


def noted(method: Any, name: str) -> Any:
    def call(*arguments: Any, **more: Any) -> Any:
        if (work := WORK.get()) is not None:
            work.append(f"store {name}")
        return method(*arguments, **more)

    return call


def note_statement(_: Any, __: Any, statement: str, *___: Any) -> None:
    if (work := WORK.get()) is not None:
        work.append(statement)


@pytest.fixture(scope="module")
def owned(platform: Any) -> tuple[dict[str, str], dict[str, str]]:
    """What the owner and the other have."""
    for tenant in (OTHER, OWNER, FRIEND):
        platform.add(tenant)
    mine = platform.furnish(OTHER, FRIEND)
    own = platform.furnish(OWNER, FRIEND)
    for tenant in (OTHER, OWNER, FRIEND):
        platform.add(tenant)  # keys of which nothing is known yet
        platform.ask(tenant, "GET", "/v1/models")
    return own, mine


def test_nobody_learns_of_or_changes_what_is_another_s(
    platform: Any, owned: tuple[dict[str, str], dict[str, str]]
) -> None:
    own, mine = owned
    every = operations(platform.client.get("/openapi.json").json())
    assert len(every) > 60
    before = state_of(platform, own)
    assert {row.split()[0] for row in before if not row.startswith("/")} >= {
        "adapter_publishes", "api_keys", "audit", "checkpoint_permissions", "files", "job_checkpoints", "job_events",
        "jobs", "sweep_runs", "sweeps", "tenants", "upload_parts", "uploads", "webhook_deliveries", "webhooks",
    }  # fmt: skip
    secret = [OWNER, *(value for kind, value in own.items() if kind != "audit")]
    tried = worked = 0
    for operation in every:
        where = f"{operation.method} {operation.path}"
        attempts = [
            ({place: foreign}, {place: nobodys})
            for place, kind in operation.places.items()
            for foreign, nobodys in spellings(kind, own, mine)
        ]
        if len(operation.inside | operation.body) > 1:
            pairs = {
                place: spellings(kind, own, mine)[-1] for place, kind in (operation.inside | operation.body).items()
            }
            attempts.append(({p: pair[0] for p, pair in pairs.items()}, {p: pair[1] for p, pair in pairs.items()}))
        if operation.path.startswith(ADAPTER):
            both = {"owner": OWNER, "upload": own["adapter_upload"]}
            attempts.append((both | {"adapter": "legal"}, both | {"adapter": "legam"}))
        for foreign, nobodys in attempts:
            chosen = defaults(operation, mine)
            for _ in range(3):  # what is remembered for seconds may be read anew by one of the two
                answer = operation.send(platform, OTHER, chosen | foreign)
                same = answer == operation.send(platform, OTHER, chosen | nobodys)
                if same:
                    break
            assert same, (where, foreign)
            assert not [each for each in secret if each in answer.text], (where, foreign)
            looks = operation.method == "GET" and set(foreign) <= set(operation.query)
            assert answer.status in ((200, 400, 404) if looks else (400, 403, 404)), (where, foreign, answer)
            assert (answer.status == 403) == ((operation.method, operation.path) in OPERATORS), (where, answer)
            tried += 1
            worked += bool(answer.work)
        assert state_of(platform, own) == before, where
        if operation.method == "GET" and operation.path != "/v1/files/{file_id}/content":
            status, text, *_ = operation.send(platform, OTHER, defaults(operation, mine))
            assert status == (403 if operation.path == "/metrics" else 200), (where, text)
            assert not [each for each in secret if each in text], where
    assert tried > 100
    assert worked > tried / 2, "or nothing was compared"


@pytest.mark.parametrize("visibility", ["shared", "public"])
def test_what_others_may_read_they_do_not_change(
    visibility: str, platform: Any, owned: tuple[dict[str, str], dict[str, str]]
) -> None:
    """Of what is shared, who is not named learns nothing still."""
    own, _ = owned
    sharing = {"visibility": visibility, "tenants": [FRIEND] if visibility == "shared" else []}
    platform.do(OWNER, "PUT", f"adapters/{own['model']}/visibility", json=sharing)
    before, tried = state_of(platform, own), 0
    theirs = {"owner": OWNER, "upload": own["adapter_upload"]}
    for operation in operations(platform.client.get("/openapi.json").json()):
        if not operation.path.startswith(ADAPTER):
            continue
        where = operation.method, operation.path
        readable = operation.method == "GET" and not re.search("/uploads|/reach", operation.path)
        status, text, *_ = operation.send(platform, FRIEND, theirs)
        assert status == (200 if readable or "/likes" in operation.path else 403), (where, text)
        answer = operation.send(platform, OTHER, theirs)
        if visibility == "public":
            assert answer.status == status, where
        else:
            absent = operation.send(platform, OTHER, theirs | {"adapter": "legam"})
            assert answer == absent._replace(text=absent.text.replace("<adapter>", "legal")), where
            assert answer.status == 404, where
        assert state_of(platform, own) == before, where
        tried += 1
    assert tried > 12
    platform.do(OWNER, "PUT", f"adapters/{own['model']}/visibility", json={"visibility": "private"})


def test_ids_are_looked_at(platform: Any, owned: tuple[dict[str, str], dict[str, str]]) -> None:
    """With the same ids their owner gets other answers than with nobody's, or the first test would show nothing.

    It is the last: what it sends changes much.
    """
    own, mine = owned
    for operation in operations(platform.client.get("/openapi.json").json()):
        where = operation.method, operation.path
        if where in OPERATORS:
            continue
        pairs = {
            place: spellings(kind, own, mine)[0]
            for place, kind in operation.places.items()
            if (operation.path, place) not in POSITIONS | FILTERS
        }
        chosen = defaults(operation, own)
        absent = [operation.send(platform, OWNER, chosen | {place: pair[1]}) for place, pair in pairs.items()]
        good = [{place: pair[0]} for place, pair in pairs.items() if place in operation.query]
        for ids in good if len(good) == len(pairs) else [{}, *good]:
            found = operation.send(platform, OWNER, chosen | ids)
            assert found[:2] not in [each[:2] for each in absent], (where, found)
        for status, text, *_ in absent:
            assert status in (400, 404), (where, text)
            assert json.loads(text)["error"]["message"], where
