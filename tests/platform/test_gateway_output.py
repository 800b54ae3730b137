"""The gateway on constrained answers and tools: what the replicas are asked, and how their calls are answered."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from swapmeet.gateway.app import create_app
from swapmeet.gateway.services import Services
from swapmeet.tenancy import Tenancy
from swapmeet_registry import Fingerprint, Registry
from swapmeet_serving import Call, Chunk
from swapmeet_serving.calls import ToolCall
from swapmeet_serving.constraints import Constraint

DIGEST = "sha256:" + "0" * 64
USER = {"role": "user", "content": "Hello"}
SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}, "required": ["b"]}
ADD: dict[str, Any] = {"type": "function", "function": {"name": "add", "parameters": SCHEMA, "strict": True}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"b": 1}'}}


class Scripted:
    """Replicas that note each call and give the script's chunks."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.script = [Chunk("Hello", (1,), "stop", 5, 1)]

    async def generate(self, call: Call) -> Any:
        self.calls.append(call)
        for chunk in self.script:
            yield chunk

    async def answer(self, call: Call) -> tuple[Chunk, ...]:
        self.calls.append(call)
        return (self.script[-1],)

    async def describe(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def replicas() -> Scripted:
    return Scripted()


@pytest.fixture
def client(replicas: Scripted, tenancy: Tenancy, key_of: Callable[..., str], tmp_path: Path) -> Iterator[TestClient]:
    base = Fingerprint(name="tiny", weights=DIGEST, tokenizer=DIGEST)
    services = Services(Registry(f"file://{tmp_path}/registry"), tenancy, base, replicas)
    with TestClient(create_app(services), raise_server_exceptions=False) as client:
        client.headers["authorization"] = f"Bearer {key_of('admin', 'admin')}"
        yield client


@pytest.fixture
def chat(client: TestClient) -> Callable[..., Any]:
    return lambda **body: client.post("/v1/chat/completions", json={"model": "tiny", "messages": [USER]} | body)


Chat = Callable[..., Any]
NAMED = {"name": "answer", "schema": SCHEMA, "strict": True}


@pytest.mark.parametrize(
    ("body", "constraint"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Constraint.json_object()),
        ({"response_format": {"type": "json_schema", "json_schema": NAMED}}, Constraint.json_schema(SCHEMA)),
        ({"structured_outputs": {"json": SCHEMA}}, Constraint.json_schema(SCHEMA)),
        ({"structured_outputs": {"json_object": True}}, Constraint.json_object()),
        ({"structured_outputs": {"regex": "a+"}}, Constraint.regex("a+")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, Constraint.choice(["a", "b"])),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, Constraint.lark('start: "a"')),
        ({"guided_json": SCHEMA, "guided_regex": None}, Constraint.json_schema(SCHEMA)),
        ({"guided_regex": "a+", "response_format": {"type": "text"}}, Constraint.regex("a+")),
        ({"guided_choice": ["a"]}, Constraint.choice(["a"])),
        ({"guided_grammar": 'start: "a"'}, Constraint.lark('start: "a"')),
    ],
)
def test_constraints_reach_the_replicas(
    client: TestClient, chat: Chat, replicas: Scripted, body: dict[str, Any], constraint: Constraint | None
) -> None:
    assert chat(**body).status_code == 200
    assert client.post("/v1/completions", json={"model": "tiny", "prompt": "x"} | body).status_code == 200
    assert [call.constraint for call in replicas.calls] == [constraint, constraint]
    if constraint == Constraint.json_schema(SCHEMA):
        assert constraint.text.index('"b"') < constraint.text.index('"a"'), "the order of properties is kept"


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema is given with"),
        ({"response_format": {"type": "text", "json_schema": NAMED}}, "response_format", "json_schema is given with"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
         "response_format.json_schema.schema", "required"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex", "Give one of"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice", "Give one of"),
        ({"structured_outputs": {"structural_tag": "a"}}, "structured_outputs.structural_tag", "not supported"),
        ({"guided_regex": "((a{100}){100}){100}"}, "guided_regex", "Repetitions inside repetitions"),
        ({"response_format": {"type": "json_schema", "json_schema": NAMED | {"schema": {"multipleOf": 99999}}}},
         "response_format.json", "multipleOf 99999"),
        ({"functions": []}, "functions", "use tools and tool_choice"),
        ({"function_call": "auto"}, "function_call", "use tools and tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "pattern"),
        ({"tools": [ADD, {"type": "function", "function": {"name": "x" * 65}}]}, "tools.1.function.name", "pattern"),
        ({"tools": [ADD, ADD]}, "tools.1.function.name", "another function of the name add"),
        ({"tools": [{"type": "web_search", "function": {"name": "a"}}]}, "tools.0.type", "function"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]},
         "tools.0.function.parameters", "of the type object"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
         "tools.0.function.parameters", "dictionary"),
        ({"tool_choice": "required"}, "tool_choice", "no tools to choose from"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "b"}}}, "tool_choice", "name b"),
        ({"messages": [{"role": "user"}]}, "messages.0", "content is missing"),
        ({"messages": [USER, {"role": "tool", "content": "1"}]}, "messages.1", "tool_call_id"),
        ({"messages": [USER | {"tool_call_id": "1"}]}, "messages.0", "tool_call_id"),
        ({"messages": [USER | {"tool_calls": [CALL]}]}, "messages.0", "assistant"),
        ({"messages": [{"role": "assistant", "tool_calls": [
            CALL | {"function": {"name": "add", "arguments": "[1]"}}]}]},
         "messages.0.tool_calls.0.function.arguments", "JSON text of an object"),
    ],
)  # fmt: skip
def test_mistakes_are_named(chat: Chat, replicas: Scripted, body: dict[str, Any], param: str, message: str) -> None:
    answer = chat(**body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["code"] == "invalid_request"
    assert error["param"] == param
    assert message in error["message"]
    assert replicas.calls == []


def test_deep_nesting_is_refused_in_openai_s_form(client: TestClient, replicas: Scripted) -> None:
    for depth in (200, 900, 20_000):
        deep = '{"type": "array", "items": ' * depth + "{}" + "}" * depth
        bodies = (
            f'"guided_json": {deep}',
            '"tool_choice": "required", "tools": [{"type": "function", "function": {"name": "a", "parameters": '
            f'{{"properties": {{"a": {deep}}}}}}}}}]',
        )
        for body in bodies:
            raw = f'{{"model": "tiny", "messages": [{json.dumps(USER)}], {body}}}'
            answer = client.post("/v1/chat/completions", content=raw, headers={"content-type": "application/json"})
            assert answer.status_code in ({200, 400} if depth < 1000 else {400}), (depth, answer.text)


def test_tools_reach_the_replicas(chat: Chat, replicas: Scripted) -> None:
    other = {"type": "function", "function": {"name": "other"}}
    choices: list[Any] = ["auto", "required", {"type": "function", "function": {"name": "add"}}, "none"]
    for choice in choices:
        assert chat(tools=[ADD, other], tool_choice=choice, parallel_tool_calls=False).status_code == 200
    auto, required, named, none = (call.tools for call in replicas.calls)
    assert none is None
    assert auto
    assert required
    assert named
    assert auto.functions == (ADD["function"], {"name": "other"})
    assert not auto.parallel
    assert [(each.required, each.function) for each in (auto, required, named)] == [
        (False, None), (True, None), (True, "add"),
    ]  # fmt: skip
    assert chat(tools=[]).status_code == 200
    assert replicas.calls[-1].tools is None


def test_earlier_calls_and_results_reach_the_template(chat: Chat, replicas: Scripted) -> None:
    assistant = {"role": "assistant", "content": None, "tool_calls": [CALL | {"index": 0}], "refusal": None}
    result = {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "2"}]}
    assert chat(messages=[USER, assistant, result], tools=[ADD]).status_code == 200
    assert replicas.calls[0].messages == (
        USER,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [CALL | {"function": {"name": "add", "arguments": {"b": 1}}}],
        },
        {"role": "tool", "content": "2", "tool_call_id": "call_1"},
    )


MADE = (ToolCall(0, "call_1", "add", '{"b": 1}'), ToolCall(1, "call_2", "add", '{"b": 2}'))


@pytest.mark.parametrize(("text", "content"), [("", None), ("Let me see.", "Let me see.")])
def test_calls_in_a_whole_answer(chat: Chat, replicas: Scripted, text: str, content: str | None) -> None:
    replicas.script = [Chunk(text, (1,), "tool_calls", 5, 1, MADE[:1])]
    (choice,) = chat(tools=[ADD]).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {"role": "assistant", "content": content, "refusal": None, "tool_calls": [CALL]}


def test_calls_in_a_stream(chat: Chat, replicas: Scripted) -> None:
    replicas.script = [
        Chunk("Let me see.", (1,), None, 5, 1),
        Chunk("", (2,), None, 5, 2, MADE[:1]),
        Chunk("", (3,), "tool_calls", 5, 3, MADE[1:]),
    ]
    lines = [line.removeprefix("data: ") for line in chat(tools=[ADD], stream=True).text.splitlines() if line]
    choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
    assert [choice["delta"] for choice in choices[1:]] == [
        {"content": "Let me see."},
        {"tool_calls": [{"index": 0} | CALL]},
        {"tool_calls": [{"index": 1} | CALL | {"id": "call_2", "function": {"name": "add", "arguments": '{"b": 2}'}}]},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "tool_calls"]
