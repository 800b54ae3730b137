"""Calls of tools, out of text and into prompts, in every form and however the text is cut."""

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swapmeet_serving.calls import ToolUse
from swapmeet_serving.chat import ChatTemplates
from swapmeet_serving.constraints import Constraint, quote
from swapmeet_serving.errors import InvalidRequest
from swapmeet_serving.tools import FORMATS, HERMES, LLAMA, MISTRAL, ToolFormat, format_for
from swapmeet_serving.tools.enforce import compile_tools, enforced
from swapmeet_serving.tools.stream import ToolStream

NAMES = ["get_weather", "add"]
Found = tuple[str, list[tuple[str, Any]]]


def read(form: ToolFormat, pieces: Sequence[str], *, many: bool = True) -> Found:
    """Content and calls of an answer that comes in these pieces."""
    stream = ToolStream(form, NAMES, many=many)
    parts = [*map(stream.add, pieces), stream.finish()]
    calls = [call for _, made in parts for call in made]
    assert [call.index for call in calls] == list(range(len(calls)))
    assert len({call.id for call in calls}) == len(calls)
    return "".join(text for text, _ in parts), [(call.name, json.loads(call.arguments)) for call in calls]


def hermes(name: str, arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


PARIS = ("get_weather", {"city": "Paris"})
TRAP = ("add", {"text": 'a "quoted" </tool_call> \\" end'})
ANSWERS: list[tuple[ToolFormat, str, Found]] = [
    (HERMES, "Hello, what a < b.", ("Hello, what a < b.", [])),
    (HERMES, "", ("", [])),
    (HERMES, " \n", (" \n", [])),
    (HERMES, hermes(*PARIS), ("", [PARIS])),
    (HERMES, f"Let me see.\n{hermes(*PARIS)}\n{hermes(*TRAP)}\n", ("Let me see.", [PARIS, TRAP])),
    (HERMES, f"{hermes(*PARIS)} That was it. {hermes(*PARIS)}", (" That was it.", [PARIS, PARIS])),
    (HERMES, '<tool_call>{"name": "add"}', ("", [("add", {})])),
    (HERMES, hermes("add", json.dumps({"a": 1})), ("", [("add", {"a": 1})])),
    (HERMES, hermes("unknown", {}), (hermes("unknown", {}), [])),
    (HERMES, f"<tool_call>\nnonsense\n</tool_call>{hermes(*PARIS)}", ("<tool_call>\nnonsense\n</tool_call>", [PARIS])),
    (HERMES, hermes("add", [1]), (hermes("add", [1]), [])),
    (HERMES, '<tool_call>{"name": "add", "argu', ('<tool_call>{"name": "add", "argu', [])),
    (HERMES, "I write <tool_ca", ("I write <tool_ca", [])),
    (LLAMA, "Hello {you}", ("Hello {you}", [])),
    (LLAMA, '{"name": "get_weather", "parameters": {"city": "Paris"}}', ("", [PARIS])),
    (LLAMA, '\n{ "name" : "add", "parameters": {}}; {"name": "add", "parameters": {"a": 1}}',
     ("", [("add", {}), ("add", {"a": 1})])),
    (LLAMA, '<|python_tag|>{"type": "function", "name": "add", "parameters": {"a": 2}}', ("", [("add", {"a": 2})])),
    (LLAMA, '{"name": "Bob", "age": 7}', ('{"name": "Bob", "age": 7}', [])),
    (LLAMA, '{"name": "add", "parameters": {"a"', ('{"name": "add", "parameters": {"a"', [])),
    (LLAMA, "<|python_tag|>print(1)", ("<|python_tag|>print(1)", [])),
    (MISTRAL, '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}, {"name": "add"}]',
     ("", [PARIS, ("add", {})])),
    (MISTRAL, 'Wait. [TOOL_CALLS][{"name": "add"}]', ("Wait.", [("add", {})])),
    (MISTRAL, "[TOOL_CALLS][]", ("[TOOL_CALLS][]", [])),
    (MISTRAL, "a [TOOL] b", ("a [TOOL] b", [])),
]  # fmt: skip


@pytest.mark.parametrize(("form", "text", "found"), ANSWERS)
@given(cuts=st.lists(st.integers(0, 400), max_size=30))
@settings(max_examples=40, deadline=None)
def test_calls_are_found_however_the_text_is_cut(form: ToolFormat, text: str, found: Found, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    assert read(form, [text[a:b] for a, b in pairwise(places)]) == found
    assert read(form, list(text)) == found


@given(
    form=st.sampled_from(list(FORMATS.values())),
    tokens=st.lists(
        st.sampled_from(
            ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", '{"name": "add", ', '"arguments": {}}',
             '"parameters": {}}', "[", "]", '"', "\\", "\n", " ", "text", "<tool", ";"]
        ),
        max_size=12,
    ),
    data=st.data(),
)  # fmt: skip
@settings(max_examples=400, deadline=None)
def test_any_text_gives_the_same_in_any_pieces(form: ToolFormat, tokens: list[str], data: st.DataObject) -> None:
    text = "".join(tokens)
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    assert read(form, pieces) == read(form, [text])


def test_content_is_not_held_back_but_for_a_possible_beginning() -> None:
    stream = ToolStream(HERMES, NAMES)
    assert [stream.add(piece)[0] for piece in ("Let", " me ", "see <", "b <tool", "_box")] == [
        "Let", " me", " see", " <b", " <tool_box",
    ]  # fmt: skip
    stream = ToolStream(LLAMA, NAMES)
    assert [stream.add(piece)[0] for piece in ('{"na', 'me": "', "add", 'ed"', " is")] == [
        "", "", "", '{"name": "added"', " is",
    ]  # fmt: skip


def test_one_call_where_only_one_is_wanted() -> None:
    assert read(HERMES, [hermes(*PARIS), hermes(*TRAP)], many=False) == ("", [PARIS])


def test_half_a_surrogate_pair_is_written_as_it_came() -> None:
    """JSON may hold one as an escape; as a character it could leave neither the replica nor the gateway."""
    name, arguments = HERMES.read_call({"name": "f", "arguments": json.loads(r'{"x": "\ud83d", "y": "é"}')})
    assert (name, arguments) == ("f", r'{"x": "\ud83d", "y": "é"}')


def test_mistral_s_ids_are_such_as_its_templates_take() -> None:
    assert len(MISTRAL.new_id()) == 9
    assert MISTRAL.new_id().isalnum()


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{% if tools %}<tool_call>{% endif %}", "hermes"),
        ("{% if tools %}<tool_call><function=x>{% endif %}", None),
        ("{% if tools %}[TOOL_CALLS]{% endif %}", "mistral"),
        ("{% if tools %}[TOOL_CALLS]name[ARGS]{% endif %}", None),
        ("{% if tools %}<|python_tag|>{% endif %}", "llama"),
        ("{% if tools %}something else{% endif %}", None),
        ("{{ messages }} <tool_call>", None),
    ],
)
def test_a_template_tells_its_form(template: str, name: str | None) -> None:
    found = format_for(template)
    assert (found.name if found else None) == name
    for wanted in FORMATS:
        found = format_for(template, wanted)
        assert (found.name if found else None) == (wanted if "tools" in template else None)


WEATHER = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 5}},
        "required": ["city"],
        "additionalProperties": False,
        "$defs": {"city": {"enum": ["Paris", "Rome"]}},
    },
}
ADD = {"name": "add", "strict": True, "parameters": {"type": "object", "properties": {"a": {"type": "boolean"}},
       "required": ["a"], "additionalProperties": False}}  # fmt: skip
SCHEMAS: dict[str, Any] = {each["name"]: each["parameters"] for each in (WEATHER, ADD)}


@pytest.fixture(scope="module")
def compiler(tiny_llama: Path) -> Any:
    from transformers import AutoTokenizer

    from swapmeet_serving.grammars import Grammars

    return Grammars(AutoTokenizer.from_pretrained(tiny_llama), 384, frozenset({2}))


def accepts(compiler: Any, constraint: Constraint, text: str) -> bool:
    matcher = compiler.compile(constraint).matcher()
    tokens = compiler._tokenizer.tokenize_str(text)
    return matcher._matcher.try_consume_tokens(tokens) == len(tokens) and matcher._matcher.is_accepting()


def written(form: ToolFormat, *calls: tuple[str, Any]) -> str:
    texts = [json.dumps({"name": name, form.arguments: arguments}) for name, arguments in calls]
    if form is HERMES:
        return "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in texts)
    return "; ".join(texts) if form is LLAMA else f"[TOOL_CALLS][{', '.join(texts)}]"


ROME, TRUE = ("get_weather", {"city": "Rome", "days": 3}), ("add", {"a": True})
WRONG = [("get_weather", {"city": "Bonn"}), ("add", {"a": 1}), ("add", {}), ("other", {}), ("add", {"a": True, "b": 1})]


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_what_is_enforced(compiler: Any, form: ToolFormat) -> None:
    def constraint(answer: Constraint | None = None, functions: tuple[Any, ...] = (WEATHER, ADD), **use: Any) -> Any:
        found = enforced(ToolUse(functions, **use), form, quote(form.marker), answer)
        return found and (lambda *calls, text="": accepts(compiler, found, text + written(form, *calls) * bool(calls)))

    required = constraint(required=True)
    assert required(ROME)
    assert required(ROME, TRUE, ROME)
    assert not required(text="Hello")
    assert not any(required(each) for each in WRONG)
    assert not constraint(required=True, parallel=False)(ROME, TRUE)

    named = constraint(required=True, function="add")
    assert named(TRUE)
    assert not named(ROME)
    assert not named(TRUE, TRUE)

    assert constraint(functions=(WEATHER,)) is None  # nothing is strict

    strict = constraint()
    assert strict(text="Hello, {you}.")
    assert strict(text="")
    assert strict(TRUE)
    assert strict(("get_weather", {"any": "thing"})), "only the strict one's arguments are enforced"
    assert not strict(("add", {"a": 1}))
    if form is not LLAMA:
        assert strict(TRUE, text="Let me see. ")
        assert not strict(("add", {"a": 1}), text="Let me see. ")

    both = constraint(Constraint.choice(["yes", "no"]))
    assert both(text="yes")
    assert both(TRUE)
    assert not both(text="maybe")
    assert read(form, [written(form, ROME, TRUE)]) == ("", [ROME, TRUE])


def test_a_function_that_can_not_be_enforced_is_named(compiler: Any) -> None:
    bad = {"name": "bad", "parameters": {"type": "object", "properties": {"a": {"not": {}}}}}
    use = ToolUse((WEATHER, bad), required=True)
    found = enforced(use, HERMES, quote(HERMES.marker), None)
    assert found
    with pytest.raises(InvalidRequest, match=r"^tools\.1\.function\.parameters: .*Unimplemented keys"):
        compile_tools(found, use, None, compiler.compile)
    assert enforced(ToolUse((bad,)), HERMES, quote(HERMES.marker), None) is None, "not enforced, so no matter"


@pytest.fixture
def rendered(tiny_llama: Path) -> Callable[..., str]:
    from transformers import AutoTokenizer

    def render(messages: Any, functions: Any = (), template: str | None = None) -> str:
        tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
        tokenizer.chat_template = template or tokenizer.chat_template
        return str(tokenizer.decode(ChatTemplates(tokenizer, Path).render(messages, None, functions)))

    return render


CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": {"a": True}}}
CONVERSATION = (
    {"role": "user", "content": "Add."},
    {"role": "assistant", "content": "Yes.", "tool_calls": [CALL]},
    {"role": "tool", "content": "3", "tool_call_id": "call_1"},
    {"role": "tool", "content": "4", "tool_call_id": "call_2"},
)


def test_a_template_without_tools_is_told_in_text(rendered: Callable[..., str]) -> None:
    text = rendered(CONVERSATION, (ADD, WEATHER))
    assert text.startswith("<|im_start|>system\n")
    listed = text.partition("<tools>\n")[2].partition("\n</tools>")[0].splitlines()
    assert [json.loads(line)["function"]["parameters"] for line in listed] == list(SCHEMAS.values())[::-1]
    assert "strict" not in text
    assert '{"name": "the function\'s name", "arguments": {"an argument\'s name": "its value"}}' in text
    assert 'assistant\nYes.\n<tool_call>\n{"name": "add", "arguments": {"a": true}}\n</tool_call><|im_end|>' in text
    results = "<tool_response>\n3\n</tool_response>\n<tool_response>\n4\n</tool_response>"
    assert text.endswith(f"<|im_start|>user\n{results}<|im_end|>\n<|im_start|>assistant\n")

    with_system = rendered([{"role": "system", "content": "Be brief."}, *CONVERSATION], (ADD,))
    assert with_system.startswith("<|im_start|>system\nBe brief.\n\nYou can call functions.")
    assert "<tools>" not in rendered(CONVERSATION)


def test_a_template_with_tools_gets_them(rendered: Callable[..., str]) -> None:
    template = (
        "{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}[TOOL_CALLS]"
        "{% for m in messages %}{{ m.role }}{{ m.tool_calls[0].function.arguments.a if m.tool_calls }}{% endfor %}"
    )
    assert rendered(CONVERSATION, (ADD, WEATHER), template) == "addget_weather[TOOL_CALLS]userassistantTruetooltool"
