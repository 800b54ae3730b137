"""Chats with tools, preferences and completions: what is read of them, and what is found wrong or doubtful."""

import json
from pathlib import Path
from typing import Any

import pytest

from swapmeet_training.data import KINDS, Chat, Completion, Finding, Message, Preference, ToolCall
from swapmeet_training.data.findings import Notes
from swapmeet_training.data.parsing import parse_example
from swapmeet_training.data.reading import examine

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Is it warm in Rome?"}
ASSISTANT = {"role": "assistant", "content": "Yes."}
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
TOOL = {"type": "function", "function": WEATHER}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "30 degrees"}


def messages(*items: Any, **others: Any) -> dict[str, Any]:
    return {"messages": list(items)} | others


def preference(**changes: Any) -> dict[str, Any]:
    given = {
        "input": {"messages": [USER]},
        "preferred_output": [ASSISTANT],
        "non_preferred_output": [{"role": "assistant", "content": "No."}],
    } | changes
    return {key: value for key, value in given.items() if value is not ...}


def parse(value: Any) -> tuple[Any, Notes]:
    notes = Notes(7)
    return parse_example(value, notes), notes


def test_a_chat_with_tools() -> None:
    chat, notes = parse(messages(SYSTEM, USER, CALLING, RESULT, ASSISTANT, tools=[TOOL], parallel_tool_calls=False))
    call = ToolCall("call_1", "weather", '{"city": "Rome"}')
    assert chat == Chat(
        7,
        (
            Message("system", "Be brief."),
            Message("user", "Is it warm in Rome?"),
            Message("assistant", "", tool_calls=(call,)),
            Message("tool", "30 degrees", tool_call_id="call_1"),
            Message("assistant", "Yes."),
        ),
        (WEATHER,),
    )
    assert notes.mistakes == notes.warnings == []


def test_the_older_functions_are_read_as_tools() -> None:
    calling = {"role": "assistant", "function_call": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    result = {"role": "function", "name": "weather", "content": "30 degrees"}
    older, notes = parse(messages(USER, calling, result, ASSISTANT, functions=[WEATHER]))
    newer, _ = parse(messages(USER, CALLING, RESULT, ASSISTANT, tools=[TOOL]))
    assert older.tools == newer.tools
    assert [message.role for message in older.messages] == [message.role for message in newer.messages]
    assert older.messages[1].tool_calls[0].arguments == newer.messages[1].tool_calls[0].arguments
    assert older.messages[2].tool_call_id == older.messages[1].tool_calls[0].id
    assert [warning.kind for warning in notes.warnings] == ["deprecated_functions"]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "assistant", "refusal": "I can not say."}, Message("assistant", "I can not say.")),
        ({"role": "assistant", "content": "Yes.", "weight": 0, "refusal": None}, Message("assistant", "Yes.", False)),
        ({"role": "assistant", "content": "Yes.", "weight": 1.0}, Message("assistant", "Yes.")),
        ({"role": "assistant", "content": "Yes.", "name": "Bo"}, Message("assistant", "Yes.", name="Bo")),
        (
            {"role": "assistant", "content": [{"type": "text", "text": "Ye"}, {"type": "text", "text": "s."}]},
            Message("assistant", "Yes."),
        ),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, Message("assistant", "No.")),
        ({"role": "assistant", "content": "Yes.", "tool_calls": [], "audio": None}, Message("assistant", "Yes.")),
    ],
)
def test_messages_as_openai_has_them(message: dict[str, Any], expected: Message) -> None:
    chat, notes = parse(messages(USER, {"role": "assistant", "content": "x"}, USER, message))
    assert chat.messages[-1] == expected
    assert notes.warnings == []


def test_arguments_may_be_an_object_as_chat_templates_have_them() -> None:
    calling = {"role": "assistant", "tool_calls": [CALL | {"function": {"name": "weather", "arguments": {"é": [1]}}}]}
    chat, _ = parse(messages(USER, calling, tools=[TOOL]))
    assert chat.messages[1].tool_calls[0].arguments == '{"é": [1]}'
    assert chat.messages[1].as_turn()["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"é": [1]}}


@pytest.mark.parametrize(
    "keys", [("preferred_output", "non_preferred_output"), ("preferred_completion", "non_preferred_completion")]
)
def test_preferences_in_both_spellings(keys: tuple[str, str]) -> None:
    no = {"role": "assistant", "content": "No."}
    given = {
        "input": {"messages": [USER], "tools": [TOOL], "parallel_tool_calls": True},
        keys[0]: [CALLING],
        keys[1]: [no],
    }
    found, notes = parse(given)
    call = ToolCall("call_1", "weather", '{"city": "Rome"}')
    assert found == Preference(
        7,
        (Message("user", "Is it warm in Rome?"),),
        Message("assistant", "", tool_calls=(call,)),
        Message("assistant", "No."),
        (WEATHER,),
        keys,
    )
    assert notes.mistakes == notes.warnings == []


def test_developers_are_the_system_to_a_template() -> None:
    chat, notes = parse(messages({"role": "developer", "content": "Be brief."}, USER, ASSISTANT))
    assert chat.messages[0].as_turn() == SYSTEM
    assert notes.warnings == []


def called(**changes: Any) -> dict[str, Any]:
    """A chat that ends with a call, parts of which are other than they should be."""
    function = {"name": "weather", "arguments": "{}"} | changes
    return messages(USER, {"role": "assistant", "tool_calls": [CALL | {"function": function}]}, tools=[TOOL])


def defined(tool: Any) -> dict[str, Any]:
    return messages(USER, ASSISTANT, tools=[tool])


WRONG: list[tuple[dict[str, Any], str, str]] = [
    (called(arguments="{city"), "messages[1].tool_calls[0].function.arguments", "invalid_arguments"),
    (called(arguments="[1]"), "messages[1].tool_calls[0].function.arguments", "invalid_arguments"),
    (called(arguments='{"x": NaN}'), "messages[1].tool_calls[0].function.arguments", "invalid_arguments"),
    (called(arguments=None), "messages[1].tool_calls[0].function.arguments", "invalid_arguments"),
    (called(arguments='{"x": "\\ud800"}'), "messages[1].tool_calls[0].function.arguments", "lone_surrogate"),
    (called(arguments="[" * 100_000), "messages[1].tool_calls[0].function.arguments", "invalid_arguments"),
    (called(name="tides"), "tools", "unknown_function"),
    (called(name=""), "messages[1].tool_calls[0].function.name", "empty_text"),
    (called(extra=1), "messages[1].tool_calls[0].function.extra", "invalid_tool_call"),
    (messages(USER, {"role": "assistant", "tool_calls": "x"}), "messages[1].tool_calls", "invalid_tool_call"),
    (messages(USER, {"role": "assistant", "tool_calls": [3]}), "messages[1].tool_calls[0]", "invalid_tool_call"),
    (messages(USER, CALLING | {"tool_calls": [CALL, CALL]}), "messages[1].tool_calls[1].id", "invalid_tool_call"),
    (
        messages(USER, CALLING | {"function_call": {"name": "x", "arguments": "{}"}}),
        "messages[1].function_call",
        "invalid_tool_call",
    ),
    (messages(USER, {"role": "assistant", "function_call": "x"}), "messages[1].function_call", "invalid_tool_call"),
    (
        messages(USER, {"role": "assistant", "tool_calls": [{"function": CALL["function"]}]}, tools=[TOOL]),
        "messages[1].tool_calls[0].id",
        "invalid_tool_call",
    ),
    (messages(USER, RESULT, ASSISTANT), "messages[1]", "unknown_tool_call"),
    (messages(USER, CALLING, RESULT, RESULT, ASSISTANT, tools=[TOOL]), "messages[3]", "unknown_tool_call"),
    (messages(USER, {"role": "tool", "content": "x"}, ASSISTANT), "messages[1].tool_call_id", "message_missing_key"),
    (messages(USER, {"role": "function", "content": "x"}, ASSISTANT), "messages[1].name", "message_missing_key"),
    (messages(USER, {"role": "function", "name": "f", "content": "x"}, ASSISTANT), "messages[1]", "unknown_tool_call"),
    (messages(USER, {"role": "assistant"}), "messages[1].content", "missing_content"),
    (messages(USER, ASSISTANT | {"refusal": "No."}), "messages[1].refusal", "unsupported_content"),
    (defined("x"), "tools[0]", "invalid_tool"),
    (defined(WEATHER), "tools[0]", "invalid_tool"),
    (defined({"type": "retrieval"}), "tools[0]", "invalid_tool"),
    (defined({"type": "function", "function": "x"}), "tools[0].function", "invalid_tool"),
    (defined({"type": "function", "function": {"name": "a b"}}), "tools[0].function.name", "invalid_tool"),
    (
        defined({"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}),
        "tools[0].function.parameters",
        "invalid_tool",
    ),
    (
        defined({"type": "function", "function": {"name": "f", "parameters": {"a": "\ud800"}}}),
        "tools[0].function.parameters",
        "lone_surrogate",
    ),
    (
        defined({"type": "function", "function": {"name": "f", "description": 3}}),
        "tools[0].function.description",
        "data_type",
    ),
    (
        defined({"type": "function", "function": {"name": "f", "strict": "yes"}}),
        "tools[0].function.strict",
        "invalid_tool",
    ),
    (
        defined({"type": "function", "function": {"name": "f", "arguments": {}}}),
        "tools[0].function.arguments",
        "invalid_tool",
    ),
    (messages(USER, ASSISTANT, tools=[TOOL, TOOL]), "tools[1]", "duplicate_tool"),
    (messages(USER, ASSISTANT, tools={}), "tools", "invalid_tool"),
    (messages(USER, ASSISTANT, tools=[TOOL] * 129), "tools", "invalid_tool"),
    (messages(USER, ASSISTANT, tools=[TOOL], functions=[WEATHER]), "functions", "invalid_tool"),
    (messages(USER, ASSISTANT, parallel_tool_calls="no"), "parallel_tool_calls", "data_type"),
    (preference(input=...), "input", "missing_key"),
    (preference(input={"messages": []}), "input.messages", "missing_messages_list"),
    (preference(input={"messages": [USER], "x": 1}), "input.x", "unrecognized_key"),
    (preference(input={"messages": [USER, ASSISTANT]}), "input.messages", "last_message_is_assistant"),
    (
        preference(input={"messages": [USER, ASSISTANT | {"weight": 0}, USER]}),
        "input.messages[1].weight",
        "message_unrecognized_key",
    ),
    (preference(preferred_output=...), "preferred_output", "missing_output"),
    (preference(preferred_output=[]), "preferred_output", "missing_output"),
    (preference(preferred_output=[ASSISTANT, ASSISTANT]), "preferred_output", "missing_output"),
    (preference(preferred_output="Yes."), "preferred_output", "missing_output"),
    (preference(preferred_output=[USER]), "preferred_output[0].role", "example_missing_assistant_message"),
    (preference(non_preferred_output=[ASSISTANT]), "non_preferred_output", "identical_outputs"),
    (preference(preferred_completion=[ASSISTANT]), "preferred_completion", "unrecognized_key"),
]


@pytest.mark.parametrize(("value", "field", "kind"), WRONG, ids=[f"{kind}-{field}" for _, field, kind in WRONG])
def test_mistakes_name_their_field_and_kind(value: dict[str, Any], field: str, kind: str) -> None:
    found, notes = parse(value)
    assert found is None
    assert (field, kind) in [(mistake.field, mistake.kind) for mistake in notes.mistakes]
    for mistake in notes.mistakes:
        assert mistake.line == 7
        assert mistake.kind in KINDS
        assert str(mistake).endswith((".", "…", "}"))
        assert json.loads(json.dumps(mistake.as_dict()))["field"] == mistake.field
        str(mistake).encode()


DOUBTFUL = [
    (messages(ASSISTANT, USER, ASSISTANT), "messages", "missing_user_message"),
    (messages(SYSTEM, ASSISTANT), "messages", "missing_user_message"),
    (messages(USER, SYSTEM, ASSISTANT), "messages[1].role", "system_not_first"),
    (messages({"role": "system", "content": ""}, USER, ASSISTANT), "messages[0].content", "empty_text"),
    (messages(USER, CALLING, RESULT, ASSISTANT), "tools", "calls_without_tools"),
    (messages(USER, CALLING, USER, ASSISTANT, tools=[TOOL]), "messages[1]", "unanswered_tool_call"),
    (
        messages(USER, CALLING | {"tool_calls": [CALL, CALL | {"id": "2"}]}, tools=[TOOL], parallel_tool_calls=False),
        "parallel_tool_calls",
        "parallel_calls",
    ),
]


@pytest.mark.parametrize(("value", "field", "kind"), DOUBTFUL, ids=[kind for _, _, kind in DOUBTFUL])
def test_what_is_doubtful_is_told_and_read(value: dict[str, Any], field: str, kind: str) -> None:
    found, notes = parse(value)
    assert found is not None
    assert [(warning.field, warning.kind) for warning in notes.warnings] == [(field, kind)]
    assert kind in KINDS


def test_every_kind_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training-data.md").read_text()
    assert [kind for kind, meaning in KINDS.items() if f"| `{kind}` | {meaning} |" not in page] == []


def test_all_mistakes_of_an_example_are_told() -> None:
    _, notes = parse(messages({"role": "user"}, {"role": "assistant", "content": "", "weight": 3, "x": 1}, "y"))
    assert [(mistake.field, mistake.kind) for mistake in notes.mistakes] == [
        ("messages[0].content", "missing_content"),
        ("messages[1].x", "message_unrecognized_key"),
        ("messages[1].content", "empty_text"),
        ("messages[1].weight", "invalid_weight"),
        ("messages[2]", "data_type"),
    ]


def test_a_strangers_words_are_short_and_steer_no_terminal() -> None:
    _, notes = parse(messages(USER | {"\x1b[31m" + "x" * 10_000: 1, "role": "\ud800"}, ASSISTANT))
    (mistake,) = notes.mistakes
    assert str(mistake).isprintable()
    _, notes = parse(messages(USER | {"\x1b[31m" + "x" * 10_000: 1}, ASSISTANT))
    (mistake,) = notes.mistakes
    assert str(mistake).isprintable()
    assert len(str(mistake)) < 200


def test_the_first_example_s_form_is_that_of_all(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    lines = [preference(), {"prompt": "a", "completion": "b"}, messages(USER, ASSISTANT), preference()]
    path.write_text("\n".join(map(json.dumps, lines)))
    rows = list(examine(path))
    assert [row.example is None for row in rows] == [False, True, True, False]
    expected = Finding(
        2,
        "",
        "mixed_forms",
        "has 'prompt' and 'completion' where line 1 has 'input' with two outputs",
        "Keep one form per file.",
    )
    assert rows[1].mistakes == [expected]
    assert isinstance(parse({"prompt": "a", "completion": "b"})[0], Completion)
