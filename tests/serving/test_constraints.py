"""Constrained answers: whatever tokens are chosen under the masks, the text keeps to the rule."""

import json
import pickle
import random
import re
import threading
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from swapmeet_serving import grammars
from swapmeet_serving.constraints import LONGEST, Constraint, nested_repetitions
from swapmeet_serving.errors import InvalidRequest
from swapmeet_serving.grammars import Grammars, Matcher, allowed

VOCABULARY = 400
"""More than the tiny tokenizer has tokens: what is above stands for none."""

EOS = 2
SLOW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def compiler(tokenizer: Any) -> Grammars:
    return Grammars(tokenizer, VOCABULARY, frozenset({EOS}))


@pytest.fixture(scope="module")
def smollm2_compiler(smollm2: Path) -> Grammars:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    return Grammars(tokenizer, len(tokenizer), frozenset({tokenizer.eos_token_id}))


def walk(compiler: Grammars, constraint: Constraint, chance: random.Random, most: int = 600) -> str | None:
    """The text of a random walk over allowed tokens that ends where it may; None if it never may."""
    tokenizer, vocabulary = compiler._source, compiler._ids
    (eos,) = compiler._eos
    matcher, tokens = compiler.compile(constraint).matcher(), []
    special = set(tokenizer.all_special_ids)
    for _ in range(most):
        (mask,) = allowed([matcher], vocabulary)
        assert matcher.problem is None
        ids = np.flatnonzero(mask)
        assert len(ids), "a grammar that is not complete must allow something"
        assert not special - {eos} & set(ids.tolist())
        assert ids.max() < len(tokenizer)
        likely = ids[np.isin(ids, CLOSING[id(tokenizer)])]
        token = eos if mask[eos] else int(chance.choice(likely if len(likely) and chance.random() < 0.7 else ids))
        matcher.advance(token)
        if token == eos:
            break
        tokens.append(token)
        if matcher.complete:
            break
    else:
        return None
    return str(tokenizer.decode(tokens))


CLOSING: dict[int, Any] = {}
"""Tokens that end things, by tokenizer: without a liking for them, random texts never end."""


@pytest.fixture(scope="module", autouse=True)
def _closing(tokenizer: Any, smollm2_compiler: Grammars) -> None:
    for each in (tokenizer, smollm2_compiler._source):
        ends = [number for text, number in each.get_vocab().items() if text in {'"', "}", "]", '"}', '"]', "}}", "]}"}]
        CLOSING[id(each)] = np.array(ends)


leaves = st.sampled_from(
    [
        {"type": "integer"}, {"type": "boolean"}, {"type": "null"}, {"type": "number"},
        {"type": "integer", "minimum": -3, "maximum": 70}, {"type": "string", "maxLength": 6},
        {"type": "string", "pattern": "^[a-f]{2,4}(-[0-9]+)?$"}, {"type": "string", "format": "date"},
        {"enum": ["é☃", 'q"uote', 3, None, [1, {"a": "b"}]]}, {"const": "x/y"}, {"type": "number", "multipleOf": 0.5},
    ]
)  # fmt: skip


def grow(inner: Any) -> Any:
    names = st.sampled_from(["a", "b", "länge", 'with "quotes"', "z_9"])
    objects = st.dictionaries(names, inner, min_size=1, max_size=4).flatmap(
        lambda properties: st.lists(st.sampled_from(sorted(properties)), unique=True).map(
            lambda required: {
                "type": "object",
                "properties": properties,
                "required": required,
                "additionalProperties": False,
            }
        )
    )
    arrays = st.builds(
        lambda items, least, more: {"type": "array", "items": items, "minItems": least, "maxItems": least + more},
        inner, st.integers(0, 2), st.integers(0, 2),
    )  # fmt: skip
    return objects | arrays | st.lists(inner, min_size=1, max_size=3).map(lambda each: {"anyOf": each})


@pytest.mark.parametrize("which", ["compiler", "smollm2_compiler"])
@given(schema=st.recursive(leaves, grow, max_leaves=6), seed=st.integers(0, 10**6))
@SLOW
def test_json_under_any_schema_is_valid(request: Any, which: str, schema: dict[str, Any], seed: int) -> None:
    text = walk(request.getfixturevalue(which), Constraint.json_schema(schema), random.Random(seed))
    assume(text is not None)
    assert text is not None
    jsonschema.validate(json.loads(text), schema)
    assert "\n" not in text


atoms = st.sampled_from(["a", "[b-d]", r"\d", "é", " ", "/", r"\.", '"', "(xy|z)", "[^a-z\n]", r"\/", "\n"])
regexes = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map("".join)
        | st.builds("({}){}".format, inner, st.sampled_from(["?", "*", "+", "{2,3}", "{4}"]))
        | st.lists(inner, min_size=2, max_size=3).map(lambda each: f"({'|'.join(each)})")
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("which", ["compiler", "smollm2_compiler"])
@given(pattern=regexes, seed=st.integers(0, 10**6), combined=st.booleans())
@SLOW
def test_text_under_any_regex_matches(request: Any, which: str, pattern: str, seed: int, combined: bool) -> None:
    constraint = Constraint.regex(pattern)
    if combined:
        constraint = Constraint.lark(f"start: answer\nanswer: {constraint.rule}\n")
    text = walk(request.getfixturevalue(which), constraint, random.Random(seed))
    assume(text is not None and "�" not in text)
    assert text is not None
    assert re.fullmatch(pattern, text), text


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9), min_size=1),
       seed=st.integers(0, 10**6))  # fmt: skip
@SLOW
def test_a_choice_is_one_of_its_texts(compiler: Grammars, texts: list[str], seed: int) -> None:
    assert walk(compiler, Constraint.choice(texts), random.Random(seed)) in texts


def test_any_json_object(compiler: Grammars) -> None:
    found = [walk(compiler, Constraint.json_object(), random.Random(seed)) for seed in range(20)]
    assert all(isinstance(json.loads(text), dict) for text in found if text is not None)
    assert sum(text is not None for text in found) > 5


def test_a_grammar_in_lark(compiler: Grammars) -> None:
    constraint = Constraint.lark('start: "(" start ")" | "x"\n')
    for seed in range(10):
        text = walk(compiler, constraint, random.Random(seed))
        assert text is None or re.fullmatch(r"\(*x\)*", text)
        assert text is None or text.count("(") == text.count(")")


def test_the_end_is_allowed_exactly_where_the_grammar_accepts(compiler: Grammars, tokenizer: Any) -> None:
    matcher = compiler.compile(Constraint.regex("ab?c?")).matcher()
    for text, ends, complete in (("", False, False), ("a", True, False), ("b", True, False), ("c", True, True)):
        if text:
            (token,) = tokenizer(text).input_ids
            matcher.advance(token)
        assert matcher.complete == complete
        if not complete:
            assert allowed([matcher], VOCABULARY)[0, EOS] == ends


REFUSED: list[tuple[Constraint, str]] = [
    (Constraint.json_schema({"not": {}}), 'JSON schema can not be enforced: Unimplemented keys: .*"not"'),
    (Constraint.json_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
    (Constraint.json_schema({"oneOf": [{"type": "number"}, {"type": "integer"}]}), "oneOf"),
    (Constraint.json_schema({"type": "wat"}), "Invalid type: wat"),
    (Constraint.json_schema({"$ref": "#/$defs/x"}), "does not exist"),
    (Constraint.json_schema({"$ref": "http://example.org/x"}), "does not fetch"),
    (Constraint.json_schema({"$ref": "#"}), "nothing can match it"),
    (Constraint.json_schema({"enum": []}), "Unsatisfiable"),
    (Constraint.json_schema({"type": "string", "format": "nonsense"}), "Unknown format: nonsense"),
    (Constraint.json_schema({"not": {}, "x-guidance": {"lenient": True}}), "not"),
    (Constraint.json_schema({"a": {"properties": {"a": {"not": {}, "x-guidance": {"lenient": True}}}}}["a"]), "not"),
    (Constraint.regex("(?=a)b"), "regex can not be enforced: look-around"),
    (Constraint.regex(r"(a)\1"), "backreferences are not supported"),
    (Constraint.regex("("), "unclosed group"),
    (Constraint.lark("start: nowhere"), "unknown name"),
    (Constraint.lark("begin: /a/"), "grammar can not be enforced: .*start"),
]  # fmt: skip


@pytest.mark.parametrize(("constraint", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_what_can_not_be_enforced_is_refused(compiler: Grammars, constraint: Constraint, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        compiler.compile(constraint)
    assert "\n" not in str(caught.value)


HOSTILE: list[Constraint] = [
    Constraint.json_schema(
        {"allOf": [{"anyOf": [{"properties": {f"a{n}": {"const": m}}} for m in range(4)]} for n in range(10)]}
    ),
    Constraint.json_schema({"enum": [f"{n}" * 4 for n in range(12_000)], "pattern": "^(.*1.{20}|.*2.{30})$"}),
    Constraint.lark("start: A9\nA0: /a|b/\n" + "".join(f"A{n}: {f'A{n - 1} ' * 6}\n" for n in range(1, 10))),
    Constraint.lark("start: " + "(" * 5000 + '"a"' + ")" * 5000),
    Constraint.lark("start: A\nA: " + " & ".join(f"/(.|\\n)*{chr(97 + n)}.{{{n + 5}}}/" for n in range(12))),
    Constraint.lark("start: start\n"),
]  # fmt: skip


@pytest.mark.parametrize("constraint", HOSTILE, ids=range(len(HOSTILE)))
def test_a_grammar_that_explodes_is_refused(compiler: Grammars, constraint: Constraint) -> None:
    with pytest.raises(InvalidRequest, match="can not be enforced"):
        compiler.compile(constraint)


def test_what_would_take_too_long_is_refused_unseen() -> None:
    for pattern in ("x(a{1000}){1000}", "((a{100}){100}){100}", "(([ab]{2,50}){50}c){9,}{9}"):
        with pytest.raises(InvalidRequest, match="Repetitions inside repetitions multiply to"):
            Constraint.regex(pattern)
        with pytest.raises(InvalidRequest, match="Repetitions inside repetitions"):
            Constraint.json_schema({"items": [{"patternProperties": {pattern: {}}}]})
        with pytest.raises(InvalidRequest, match="Repetitions inside repetitions"):
            Constraint.json_schema({"properties": {"a": {"pattern": pattern}}})
    for divisor in (10_001, 9999.9999, 1e5, float("inf")):
        with pytest.raises(InvalidRequest, match="multipleOf"):
            Constraint.json_schema({"anyOf": [{"multipleOf": divisor}]})
    with pytest.raises(InvalidRequest, match=f"at most {LONGEST}"):
        Constraint.regex("a" * (LONGEST + 1))


@pytest.mark.parametrize(
    ("pattern", "most"),
    [
        ("a{50}b{50}", 1), ("(a{50}){3}", 150), ("((a{2}b){3}c){4}", 24), ("(a{9}|b{50}){2}", 100),
        (r"(\){50}){2}", 100), ("([)]{50}){2,3}", 150), ("(a{5}(b)){7}", 35), ("a{2}{3}", 6),
        ("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", 12),
        (r"\{50}(a{3,}){2}", 6), (")(a{4}){5}", 20),
    ],
)  # fmt: skip
def test_nested_repetitions(pattern: str, most: int) -> None:
    assert nested_repetitions(pattern) == most


def test_a_matcher_that_takes_too_long_says_so(compiler: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = compiler.compile(Constraint.regex("[a-z]*"))
    matcher = grammar.matcher()
    assert not allowed([matcher], VOCABULARY).all()
    monkeypatch.setattr(grammars, "SECONDS_PER_TOKEN", -1.0)
    assert allowed([matcher], VOCABULARY).all(), "there is something to choose from, which the engine then discards"
    assert matcher.problem == "it takes too long to follow"


def test_grammars_are_kept_within_a_bound(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "MOST_KEPT", 2)
    compiler = Grammars(tokenizer, VOCABULARY, frozenset({EOS}))
    a, b, c = (Constraint.choice([letter]) for letter in "abc")
    first = compiler.compile(a)
    compiler.compile(b)
    assert compiler.compile(a) is first
    compiler.compile(c)
    assert compiler.compile(a) is first
    assert list(compiler._kept) == [c, a]


def test_matchers_of_one_grammar_are_apart_on_many_threads(compiler: Grammars, tokenizer: Any) -> None:
    grammar = compiler.compile(Constraint.regex("(ab)*c"))
    a, b, c = (tokenizer(letter).input_ids[0] for letter in "abc")
    failures: list[Exception] = []

    def follow(rounds: int) -> None:
        try:
            matcher: Matcher = grammar.matcher()
            for _ in range(rounds):
                for token in (a, b):
                    assert allowed([matcher], VOCABULARY)[0, token]
                    matcher.advance(token)
            matcher.advance(c)
            assert matcher.complete
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=follow, args=(rounds,)) for rounds in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_schema_nested_too_deeply_is_refused(compiler: Grammars) -> None:
    for depth in (300, 100_000):
        schema: dict[str, Any] = {"type": "integer"}
        for _ in range(depth):
            schema = {"type": "array", "items": schema}
        with pytest.raises(InvalidRequest, match=r"recursion limit|nested too deeply"):
            compiler.compile(Constraint.json_schema(schema))


def test_constraints_travel() -> None:
    constraint = Constraint.json_schema({"type": "object"})
    assert pickle.loads(pickle.dumps(constraint)) == constraint
    with pytest.raises(InvalidRequest, match="can not be combined with tools"):
        _ = Constraint.lark("start: /a/").rule


@pytest.mark.parametrize("pattern", ["[" * 260_000, "[\\\\" * 80_000, "[" * 260_000 + "\\\\", "{" * 260_000])
def test_long_patterns_are_looked_at_once(pattern: str) -> None:
    """Were every opened class looked for to the end, this would take many minutes."""
    assert nested_repetitions(pattern) == 1


def test_counts_of_thousands_of_digits_are_refused() -> None:
    for pattern in (f"(a{{2}}){{{'1' * 5000}}}", "(" * 2000 + "a" + "{999})" * 2000):
        with pytest.raises(InvalidRequest, match="Repetitions inside repetitions"):
            Constraint.regex(pattern)


def test_a_lone_surrogate_is_no_constraint() -> None:
    for make in (lambda: Constraint.regex("\ud800"), lambda: Constraint.json_schema({"const": "\ud800"})):
        with pytest.raises(InvalidRequest, match="no text"):
            make()


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint.lark("\n".join([*(f"r{n}: r{n + 1}" for n in range(4_500)), 'r4500: "y"', "start: r0"])),
        Constraint.json_schema({"$ref": "#/$defs/0", "$defs": {f"{n}": {"allOf": [{"$ref": f"#/$defs/{n + 1}"}]}
                                                               for n in range(4000)} | {"4000": {}}}),
    ],
    ids=["rules", "references"],
)  # fmt: skip
def test_long_chains_do_not_end_the_process(compiler: Grammars, constraint: Constraint) -> None:
    matcher = compiler.compile(constraint).matcher()
    allowed([matcher], VOCABULARY)
    assert not matcher.problem


def test_a_problem_is_not_the_end(compiler: Grammars) -> None:
    matcher = compiler.compile(Constraint.regex("ab")).matcher()
    matcher.advance(0)
    assert matcher.problem
    assert not matcher.complete
