"""The gateway on its own: OpenAI's shapes, errors and keys, over replicas that answer by a script."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from swapmeet.gateway.app import create_app
from swapmeet.gateway.services import Services
from swapmeet.tenancy import Tenancy
from swapmeet_registry import BaseMismatch, Fingerprint, Registry
from swapmeet_serving import Call, Candidate, Chunk, TokenLogprob, join
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

    async def answer(self, call: Call) -> tuple[Chunk, ...]:
        chunks = [each async for each in self.generate(call)]
        return tuple(join([each for each in chunks if each.index == index]) for index in range(call.n))

    async def describe(self) -> dict[str, Any]:
        return {}

    async def state(self) -> str:
        if not self.script:
            raise EngineDead("no replica")
        return "ready"


def chunk(text: str, finish: str | None = None, made: int = 1, **more: Any) -> Chunk:
    counts = {"prompt_tokens": 5, "completion_tokens": made}
    return Chunk(text=text, token_ids=(1,), finish_reason=finish, **counts | more)


def token(piece: bytes, logprob: float | None, *others: tuple[bytes, float], shown: bool = True) -> TokenLogprob:
    top = tuple(Candidate(n, each, value) for n, (each, value) in enumerate(others))
    return TokenLogprob(Candidate(1, piece, logprob), top, shown)


@pytest.fixture
def replicas() -> Scripted:
    scripted = Scripted()
    scripted.script = [chunk("Hel"), chunk("lo", "stop", made=2)]
    return scripted


@pytest.fixture
def client(replicas: Scripted, tenancy: Tenancy, key_of: Callable[..., str], tmp_path: Path) -> Iterator[TestClient]:
    services = Services(Registry(f"file://{tmp_path}/registry"), tenancy, BASE, replicas)
    with TestClient(create_app(services), raise_server_exceptions=False) as client:
        client.headers["authorization"] = f"Bearer {key_of('admin', 'admin')}"
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
    assert body["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert answer.headers["x-swapmeet-adapter"] == "tiny"
    (call,) = replicas.calls
    assert call.mix == ()
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


def events_of(answer: Any) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


SAMPLED = {
    "min_p": 0.1,
    "presence_penalty": 1.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.1,
}


def test_every_sampling_parameter_reaches_the_replica(chat: Chat, client: TestClient, replicas: Scripted) -> None:
    assert chat(**SAMPLED, logit_bias={"7": -100, "12": 2.5}, logprobs=True, top_logprobs=4).status_code == 200
    (call,) = replicas.calls
    assert {name: getattr(call.sampling, name) for name in SAMPLED} == SAMPLED
    assert call.sampling.logit_bias == ((7, -100), (12, 2.5))
    assert (call.sampling.logprobs, call.sampling.prompt_logprobs) == (4, None)
    assert chat(logprobs=True).status_code == 200
    assert replicas.calls[-1].sampling.logprobs == 0
    client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "logprobs": 2, "echo": True, "max_tokens": 0})
    sampling = replicas.calls[-1].sampling
    assert (sampling.logprobs, sampling.prompt_logprobs, sampling.max_tokens) == (2, 2, 0)
    assert replicas.calls[-1].echo


def test_several_choices(chat: Chat, replicas: Scripted) -> None:
    replicas.script = [
        chunk("one", index=0),
        chunk("two", index=1, cached_tokens=4),
        chunk("!", "length", 2, index=1, cached_tokens=4),
        chunk("?", "stop", 2, index=0),
    ]
    body = chat(n=2).json()
    assert [each["index"] for each in body["choices"]] == [0, 1]
    assert [each["message"]["content"] for each in body["choices"]] == ["one?", "two!"]
    assert [each["finish_reason"] for each in body["choices"]] == ["stop", "length"]
    usage = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
    assert body["usage"] == usage | {"prompt_tokens_details": {"cached_tokens": 0}}
    assert [call.n for call in replicas.calls] == [2]

    events = events_of(chat(n=2, stream=True, stream_options={"include_usage": True}))
    assert [each["index"] for event in events for each in event["choices"]] == [0, 1, 0, 1, 1, 0]
    assert [event["usage"] for event in events[:-1]] == [None] * 6
    assert events[-1]["usage"] == body["usage"]

    options = {"include_usage": True, "continuous_usage_stats": True}
    counts = [
        event["usage"]["completion_tokens"] for event in events_of(chat(n=2, stream=True, stream_options=options))
    ]
    assert counts == [0, 0, 1, 2, 3, 4, 4]


@pytest.mark.parametrize("prompts", [["one", "two"], [[1, 2], [3]]])
def test_several_prompts(client: TestClient, replicas: Scripted, prompts: list[Any]) -> None:
    replicas.script = [chunk("a", "stop", index=0, cached_tokens=2), chunk("b", "stop", index=1, cached_tokens=3)]
    request = {"model": "tiny", "prompt": prompts, "n": 2}
    body = client.post("/v1/completions", json=request).json()
    assert [(each["index"], each["text"]) for each in body["choices"]] == [(0, "a"), (1, "b"), (2, "a"), (3, "b")]
    assert body["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 4,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    asked = [each if isinstance(each, str) else tuple(each) for each in prompts]
    assert [call.prompt for call in replicas.calls] == asked
    assert len({call.request_id for call in replicas.calls}) == 2
    events = events_of(client.post("/v1/completions", json=request | {"stream": True}))
    found = {each["index"]: each["text"] for event in events for each in event["choices"]}
    assert found == {0: "a", 1: "b", 2: "a", 3: "b"}


class Stuck(Scripted):
    """Fails at one prompt, and never ends at the others."""

    def __init__(self) -> None:
        super().__init__()
        self.cancelled: list[Any] = []

    async def generate(self, call: Call) -> AsyncIterator[Chunk]:
        if call.prompt == "bad":
            await asyncio.sleep(0.01)
            raise ContextTooLong("Too long.")
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.append(call.prompt)
        yield chunk("never")


@pytest.mark.parametrize("how", ["fails", "leaves"])
@pytest.mark.parametrize("stream", [False, True])
def test_when_one_choice_fails_or_nobody_waits_the_others_are_cancelled(stream: bool, how: str) -> None:
    from swapmeet.gateway.choices import answer, generate

    replicas = Stuck()
    prompts = ["one", "two", *(["bad"] if how == "fails" else [])]
    calls = [Call(prompt, prompt=prompt) for prompt in prompts]

    async def ask() -> None:
        waiting = anext(generate(replicas, calls)) if stream else answer(replicas, calls)
        await asyncio.wait_for(waiting, 5 if how == "fails" else 0.05)

    with pytest.raises(ContextTooLong if how == "fails" else TimeoutError):
        asyncio.run(ask())
    assert sorted(replicas.cancelled) == ["one", "two"]


def test_logprobs_of_a_chat(chat: Chat, replicas: Scripted) -> None:
    half = token(b"\xf0\x9f", -0.5, (b"\xf0\x9f", -0.5), (b"x", -1.5))
    replicas.script = [
        chunk("", logprobs=(half,)),
        chunk("\U0001f642", "stop", 2, logprobs=(token(b"\x99\x82", -99999.0),)),
    ]
    body = chat(logprobs=True, top_logprobs=2).json()
    first, second = body["choices"][0]["logprobs"]["content"]
    assert first == {
        "token": "bytes:\\xf0\\x9f",
        "logprob": -0.5,
        "bytes": [0xF0, 0x9F],
        "top_logprobs": [
            {"token": "bytes:\\xf0\\x9f", "logprob": -0.5, "bytes": [0xF0, 0x9F]},
            {"token": "x", "logprob": -1.5, "bytes": [120]},
        ],
    }
    assert (second["logprob"], second["top_logprobs"]) == (-9999.0, [])
    assert bytes(first["bytes"] + second["bytes"]).decode() == body["choices"][0]["message"]["content"]
    events = events_of(chat(logprobs=True, top_logprobs=2, stream=True))
    choices = [choice for event in events for choice in event["choices"]]
    assert [each for choice in choices for each in (choice["logprobs"] or {}).get("content", [])] == [first, second]


def test_logprobs_of_a_completion(client: TestClient, replicas: Scripted) -> None:
    begin = token(b"<s>", None, shown=False)
    prompt = token("né".encode(), -1.0, (b"x", -0.5), (b" x", -0.7))
    half, rest = token(b" \xf0\x9f", -2.0), token(b"\x99\x82", -0.1)
    replicas.script = [
        chunk("né", logprobs=(begin, prompt, half)),
        chunk(" \U0001f642", made=2, logprobs=(rest,)),
        chunk("!", "stop", 3, logprobs=(token(b"!", -0.3, (b"!", -0.3)),)),
    ]
    request = {"model": "tiny", "prompt": "né", "logprobs": 1, "echo": True}
    body = client.post("/v1/completions", json=request).json()
    found = body["choices"][0]["logprobs"]
    assert found["tokens"] == ["<s>", "né", "bytes:\\x20\\xf0\\x9f", "bytes:\\x99\\x82", "!"]
    assert found["token_logprobs"] == [None, -1.0, -2.0, -0.1, -0.3]
    assert found["text_offset"] == [0, 0, 2, 3, 4]
    assert found["top_logprobs"][:2] == [None, {"x": -0.5, " x": -0.7, "né": -1.0}]
    assert found["top_logprobs"][4] == {"!": -0.3}
    assert body["choices"][0]["text"][found["text_offset"][4]] == "!"
    events = events_of(client.post("/v1/completions", json=request | {"stream": True}))
    streamed = [choice["logprobs"] for event in events for choice in event["choices"]]
    for name, values in found.items():
        assert [each for piece in streamed for each in piece[name]] == values


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
        ({"n": 129}, "n"),
        ({"n": 0}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": -2.5}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"min_p": 1.5}, "min_p"),
        ({"logit_bias": {"7": 101}}, "logit_bias"),
        ({"logit_bias": {"seven": 1}}, "logit_bias"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"store": True}, "store"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"model": "a*0.5+b*0.5/c"}, "model"),
        ({"model": "acme/a*2+acme/a"}, "model"),
        ({"model": "acme/a*zero"}, "model"),
    ],
)
def test_bad_requests_name_the_field(chat: Chat, change: dict[str, Any], param: str) -> None:
    answer = chat(**change)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(param)


def test_neutral_values_of_what_is_not_served_are_accepted(chat: Chat, client: TestClient) -> None:
    answer = chat(
        frequency_penalty=0, presence_penalty=0, logprobs=False, n=1, stop=None, seed=None, user="u", store=False,
        metadata={"a": "b"}, service_tier="auto", modalities=["text"], prompt_cache_key="k", safety_identifier="s",
    )  # fmt: skip
    assert answer.status_code == 200
    body = {"model": "tiny", "prompt": "x", "best_of": 1, "n": 1, "suffix": None, "echo": False, "logprobs": None}
    assert client.post("/v1/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"best_of": 2}, "best_of", "only as many as n"),
        ({"logprobs": 6}, "logprobs", "less than or equal to 5"),
        ({"logprobs": True}, "logprobs", "valid integer"),
        ({"suffix": "end"}, "suffix", "''"),
        ({"prompt": []}, "prompt", "at least 1 item"),
        ({"prompt": ["x"] * 65, "n": 2}, "prompt", "130 answers, prompts times n, where 128 are the most"),
        ({"prompt": [["x"]]}, "prompt", "valid integer"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
    ],
)
def test_bad_completions_name_the_field(client: TestClient, change: dict[str, Any], param: str, message: str) -> None:
    answer = client.post("/v1/completions", json={"model": "tiny", "prompt": "x"} | change)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(param)
    assert message in answer.json()["error"]["message"]


def test_all_mistakes_are_told_at_once(chat: Chat) -> None:
    picture = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    answer = chat(
        messages=[{"role": "user", "content": picture}],
        temperature=9, top_logprobs=3, stream_options={}, temprature=1, logit_bias={"5": 500},
    )  # fmt: skip
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "messages.0.content: only text is served; leave out the parts of type image_url" in message
    assert "temprature: this parameter is unknown" in message
    for param in (
        "temperature: ",
        "top_logprobs: only with logprobs",
        "stream_options: only with stream",
        "logit_bias",
    ):
        assert param in message


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
        ("GET", "/", 404, "not_found"),
        ("POST", "/v1/embeddings", 404, "not_found"),
        ("GET", "/v2/models", 404, "not_found"),
    ],
)
def test_a_wrong_path_or_method_is_the_caller_s_mistake(
    client: TestClient, method: str, path: str, status: int, code: str
) -> None:
    answer = client.request(method, path, follow_redirects=False)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (status, code, "invalid_request_error")
    assert error.keys() == {"message", "type", "param", "code"}
    assert ("allow" in answer.headers) == (status == 405)
    assert path in error["message"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 499, 500, 503])
def test_the_type_follows_the_status(status: int) -> None:
    from swapmeet.gateway.errors import error_body

    types = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    expected = "server_error" if status >= 500 else types.get(status, "invalid_request_error")
    assert error_body("", "", status)["error"]["type"] == expected


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("content", "headers", "message"),
    [
        (b"{half", JSON, "the body is no JSON (Expecting property name enclosed in double quotes, at character 1)"),
        (b"", JSON, "Field required"),
        (b"[]", JSON, "valid dictionary"),
        (b"null", JSON, "valid dictionary"),
        (b'{"model": "\xff"}', JSON, "parsing the body"),
        (b"[" * 100_000, JSON, "the body"),
        (b'{"model": "tiny"}', {"content-type": "text/plain"}, "Send it with 'content-type: application/json'"),
        (b"model=tiny", {"content-type": "application/x-www-form-urlencoded"}, "Send it with 'content-type"),
        (b'{"model": "tiny"}', {}, "Send it with 'content-type"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_body_that_can_not_be_read(
    client: TestClient, path: str, content: bytes, headers: dict[str, str], message: str
) -> None:
    answer = client.post(path, content=content, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (400, "invalid_request", "invalid_request_error")
    assert message in error["message"]
    assert error["param"] is None


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
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert "16 MiB" in answer.json()["error"]["message"]


def test_lone_surrogates_are_told_as_a_mistake(client: TestClient) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    for wrong in (
        {"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "\ud800"}}},
        {"messages": [{"role": "user", "content": [{"type": "\ud800"}]}]},
        {"guided_json": {"const": "\ud800"}},
    ):
        body = json.dumps({"model": "tiny", "messages": MESSAGES} | wrong)  # escaped, as a client may
        answer = client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


def test_of_many_mistakes_some_are_told(client: TestClient) -> None:
    for path, wrong in (
        ("completions", {"prompt": [[-1] * 10_000]}),
        ("completions", {"prompt": "x", "logit_bias": dict.fromkeys(map(str, range(2000)), 200)}),
        ("completions", {"prompt": "x", "stop": [""] * 16} | dict.fromkeys(map(str, range(100)), 1)),
        ("chat/completions", {"messages": [1] * 10_000}),
    ):
        answer = client.post(f"/v1/{path}", json={"model": "tiny"} | wrong)
        assert answer.status_code == 400
        assert len(answer.json()["error"]["message"]) < 2500


def test_log_probabilities_that_are_no_numbers(chat: Chat, replicas: Scripted) -> None:
    replicas.script = [chunk("a", "stop", logprobs=(token(b"a", float("nan"), (b"b", float("-inf"))),))]
    (choice,) = chat(logprobs=True, top_logprobs=1).json()["choices"]
    (entry,) = choice["logprobs"]["content"]
    assert (entry["logprob"], entry["top_logprobs"][0]["logprob"]) == (-9999.0, -9999.0)
