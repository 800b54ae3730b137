"""The engine under constraints: random weights, and answers that keep to the rule all the same."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from swapmeet_serving import Engine, Output, Request, Sampling
from swapmeet_serving import grammars as grammars_module
from swapmeet_serving.constraints import Constraint
from swapmeet_serving.errors import InvalidRequest

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "tags": {"type": "array", "items": {"enum": ["a", "b", 3]}, "maxItems": 3},
        "when": {"type": "string", "format": "date"},
        "deep": {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 1, "maximum": 99}]},
    },
    "required": ["name", "tags", "when", "deep"],
    "additionalProperties": False,
}
PROMPTS = [(5, 9, 40), (77,), (12, 13, 14, 15, 16, 17)]


@pytest.fixture
def engine(make_engine: Callable[..., Engine], tiny_llama: Path) -> Engine:
    return make_engine(tiny_llama)


Answer = Callable[..., dict[str, list[Output]]]


def text_of(outputs: list[Output]) -> str:
    return "".join(output.text for output in outputs)


def tokens_of(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_random_weights_write_valid_json_and_leave_neighbours_alone(
    engine: Engine, answer: Answer, temperature: float
) -> None:
    free = [
        Request(f"free {n}", prompt, sampling=Sampling(max_tokens=40, temperature=temperature, seed=n, ignore_eos=True))
        for n, prompt in enumerate(PROMPTS)
    ]
    alone = [tokens_of(answer(engine, request)[request.id]) for request in free]
    grammar = engine.compile(Constraint.json_schema(SCHEMA))
    sampling = [Sampling(max_tokens=300, temperature=temperature, top_p=p, seed=n) for n, p in enumerate((1, 0.9, 0.5))]
    bound = [Request(f"bound {n}", PROMPTS[0], sampling=each, grammar=grammar) for n, each in enumerate(sampling)]
    found = answer(engine, bound[0], free[0], bound[1], free[1], free[2], bound[2])
    assert [tokens_of(found[request.id]) for request in free] == alone
    for request in bound:
        assert found[request.id][-1].finish_reason == "stop"
        jsonschema.validate(json.loads(text_of(found[request.id])), SCHEMA)


def test_a_regex_ends_by_itself_also_where_ends_are_ignored(engine: Engine, answer: Answer) -> None:
    for ignore_eos in (False, True):
        sampling = Sampling(max_tokens=50, ignore_eos=ignore_eos)
        for pattern in ("[0-9]{4}-[0-9]{2}", "(yes|no)(, .{0,5})?"):
            request = Request("1", PROMPTS[0], sampling=sampling, grammar=engine.compile(Constraint.regex(pattern)))
            outputs = answer(engine, request)["1"]
            assert re.fullmatch(pattern, text_of(outputs))
            assert outputs[-1].finish_reason == "stop"


def test_a_limit_cuts_and_a_request_can_be_asked_again(engine: Engine, answer: Answer) -> None:
    grammar = engine.compile(Constraint.json_schema(SCHEMA))
    request = Request("1", PROMPTS[0], sampling=Sampling(max_tokens=5), grammar=grammar)
    first, second = (answer(engine, request)["1"] for _ in range(2))
    assert first[-1].finish_reason == "length"
    assert tokens_of(first) == tokens_of(second)


def test_a_matcher_that_fails_ends_its_own_request_only(
    engine: Engine, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammar = engine.compile(Constraint.regex("[a-z]{30}"))
    monkeypatch.setattr(grammars_module, "SECONDS_PER_TOKEN", -1.0)
    bound = Request("bound", PROMPTS[0], sampling=Sampling(max_tokens=40), grammar=grammar)
    free = Request("free", PROMPTS[1], sampling=Sampling(max_tokens=6, ignore_eos=True))
    found = answer(engine, bound, free)
    assert isinstance(found["bound"][-1].error, InvalidRequest)
    assert re.search("after 0 tokens: it takes too long to follow", str(found["bound"][-1].error))
    assert len(tokens_of(found["free"])) == 6
    assert not engine.dead


def test_special_tokens_are_shown_only_where_asked_for(engine: Engine, answer: Answer) -> None:
    start: Any = engine.tokenizer.convert_tokens_to_ids("<|im_start|>")
    grammar = engine.compile(Constraint.lark(f'start: "a" <[{start}]> "b"'))
    for shown, text in ((frozenset(), "ab"), (frozenset({start}), "a<|im_start|>b")):
        outputs = answer(engine, Request("1", PROMPTS[0], grammar=grammar, shown=shown))["1"]
        assert text_of(outputs) == text
