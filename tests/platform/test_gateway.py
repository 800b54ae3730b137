"""The gateway on its own: OpenAI's shapes, errors and keys, over replicas that answer by a script."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from swapmeet.gateway.app import create_app
from swapmeet.gateway.services import Services
from swapmeet.keys import Keys
from swapmeet_registry import BaseMismatch, Fingerprint, Registry
from swapmeet_serving import Call, Chunk
from swapmeet_serving.errors import ContextTooLong, EngineDead, Overloaded

DIGEST = "sha256:" + "0" * 64
BASE = Fingerprint(name="tiny", weights=DIGEST, tokenizer=DIGEST)
MESSAGES = [{"role": "user", "content": "Hello"}]


class Scripted:
    """Replicas that note each call, then give the script's chunks or raise its errors."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.script: list[Chunk | Exception] = []

    async def generate(self, call: Call) -> AsyncIterator[Chunk]:
        self.calls.append(call)
        for item in self.script:
            if isinstance(item, Exception):
                raise item
            yield item

    async def answer(self, call: Call) -> Chunk:
        chunks = [each async for each in self.generate(call)]
        return replace(
            chunks[-1],
            text="".join(each.text for each in chunks),
            token_ids=tuple(token for each in chunks for token in each.token_ids),
        )

    async def describe(self) -> dict[str, Any]:
        return {}

    async def state(self) -> str:
        if not self.script:
            raise EngineDead("no replica")
        return "ready"


def chunk(text: str, finish: str | None = None, made: int = 1) -> Chunk:
    return Chunk(text=text, token_ids=(1,), finish_reason=finish, prompt_tokens=5, completion_tokens=made)


@pytest.fixture
def replicas() -> Scripted:
    scripted = Scripted()
    scripted.script = [chunk("Hel"), chunk("lo", "stop", made=2)]
    return scripted


@pytest.fixture
def client(replicas: Scripted, tmp_path: Path) -> Iterator[TestClient]:
    keys = Keys(f"sqlite:///{tmp_path}/keys.db")
    services = Services(Registry(f"file://{tmp_path}/registry"), keys, BASE, replicas)
    with TestClient(create_app(services), raise_server_exceptions=False) as client:
        client.headers["authorization"] = f"Bearer {keys.create('admin', 'admin')}"
        yield client


Chat = Callable[..., Any]


@pytest.fixture
def chat(client: TestClient) -> Chat:
    return lambda **body: client.post("/v1/chat/completions", json={"model": "tiny", "messages": MESSAGES} | body)


def test_a_whole_answer(chat: Chat, replicas: Scripted) -> None:
    answer = chat(temperature=0, stop="\n", seed=3, max_completion_tokens=9)
    body = answer.json()
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Hello", "refusal": None}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert answer.headers["x-swapmeet-adapter"] == "tiny"
    (call,) = replicas.calls
    assert call.adapter is None
    assert (call.sampling.temperature, call.sampling.stop, call.sampling.seed) == (0, ("\n",), 3)
    assert call.sampling.max_tokens == 9


def test_a_streamed_answer(chat: Chat) -> None:
    answer = chat(stream=True, stream_options={"include_usage": True})
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "Hello"
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["total_tokens"] == 7
    assert len({event["id"] for event in events}) == 1


def test_plain_completions_take_text_and_tokens(client: TestClient, replicas: Scripted) -> None:
    for prompt in ("Once", [1, 2, 3]):
        body = client.post("/v1/completions", json={"model": "tiny", "prompt": prompt}).json()
        assert (body["object"], body["choices"][0]["text"]) == ("text_completion", "Hello")
    assert [call.prompt for call in replicas.calls] == ["Once", (1, 2, 3)]


def test_a_failure_in_mid_answer_is_an_error_event(chat: Chat, replicas: Scripted) -> None:
    replicas.script = [chunk("Hel"), Overloaded("The engine is full. Try again later.")]
    answer = chat(stream=True)
    assert answer.status_code == 200
    last = json.loads(answer.text.splitlines()[-2].removeprefix("data: "))
    assert last["error"]["code"] == "overloaded"
    assert "[DONE]" not in answer.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ContextTooLong("Too long."), 400, "context_length_exceeded"),
        (BaseMismatch("Other base."), 400, "base_mismatch"),
        (Overloaded("Full."), 503, "overloaded"),
        (KeyError("secret detail"), 500, "internal_error"),
    ],
)
def test_a_failure_before_the_first_token_has_its_status(
    chat: Chat, replicas: Scripted, stream: bool, error: Exception, status: int, code: str
) -> None:
    replicas.script = [error]
    answer = chat(stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert ("retry-after" in answer.headers) == (status == 503)
    assert "secret detail" not in answer.text


@pytest.mark.parametrize("name", ["acme/absent", "acme/absent:3", "absent", "../x/y", "acme/" + "x" * 300, "ACME/X"])
def test_an_unknown_model_is_404_and_never_the_base(chat: Chat, replicas: Scripted, name: str) -> None:
    answer = chat(model=name)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert replicas.calls == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temprature": 1}, "temprature"),
        ({"temperature": 3}, "temperature"),
        ({"n": 2}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"model": "a*0.5+b*0.5/c"}, "model"),
    ],
)
def test_bad_requests_name_the_field(chat: Chat, change: dict[str, Any], param: str) -> None:
    answer = chat(**change)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(param)


def test_neutral_values_of_what_is_not_served_are_accepted(chat: Chat) -> None:
    answer = chat(frequency_penalty=0, presence_penalty=0, logprobs=False, n=1, stop=None, seed=None)
    assert answer.status_code == 200


def test_every_error_of_a_request_has_a_status() -> None:
    from swapmeet.gateway.errors import STATUS
    from swapmeet_registry import errors as registry
    from swapmeet_serving import errors as serving

    raised = [registry.NotFound, registry.InvalidName, registry.BaseMismatch, registry.Refused, registry.Corrupt]
    raised += [registry.StoreError, registry.StoreDenied, registry.StoreFull]
    raised += [
        kind for kind in vars(serving).values() if isinstance(kind, type) and kind.__module__ == serving.__name__
    ]
    never = {serving.ServingError, serving.BaseUnsupported}  # the base class, and one of starting
    assert {kind.code for kind in raised if kind not in never} <= set(STATUS)


def test_text_that_can_not_be_encoded_is_refused(client: TestClient, replicas: Scripted) -> None:
    raw = rb'{"model": "tiny", "prompt": "\ud800"}'
    answer = client.post("/v1/completions", content=raw, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert answer.json()["error"]["param"].startswith("prompt")
    assert replicas.calls == []


def test_a_body_that_is_no_json_is_400(client: TestClient) -> None:
    answer = client.post("/v1/chat/completions", content=b"{half", headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("header", ["", "Bearer ", "Bearer wrong", "Basic abc"])
def test_nothing_is_open_without_a_key(client: TestClient, header: str) -> None:
    client.headers["authorization"] = header
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("POST", "/v1/completions")):
        answer = client.request(method, path, json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert client.get("/healthz").status_code == 200


def test_readiness_follows_the_replicas(client: TestClient, replicas: Scripted) -> None:
    assert client.get("/readyz").status_code == 200
    replicas.script = []
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200


def test_models_lists_the_base_first(client: TestClient) -> None:
    assert [item["id"] for item in client.get("/v1/models").json()["data"]] == ["tiny"]
    assert client.get("/v1/models/tiny").json()["id"] == "tiny"
    assert client.get("/v1/models/acme/absent").status_code == 404


@pytest.mark.parametrize("pieces", [1, 4])
def test_a_body_that_is_too_large_is_refused_before_it_is_read(client: TestClient, pieces: int) -> None:
    """Without a key, too: announced by its length, or sent in chunks."""
    del client.headers["authorization"]
    piece = b" " * ((17 << 20) // pieces)
    content = piece if pieces == 1 else iter([piece] * pieces)
    answer = client.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"
    assert "16 MiB" in answer.json()["error"]["message"]
