"""What is trained: the assistant's tokens and the end of its turn, tokenised as serving would see them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swapmeet_training import DataError, TemplateError, load_dataset
from swapmeet_training.data import Chat, Completion, Message, Preference, ToolCall
from swapmeet_training.data.masking import IGNORED, Masker, Pair, Sequence

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def masker(tiny_llama: Path, tokenizer: Any) -> Masker:
    return Masker.of(tiny_llama, tokenizer, 1024)


def with_template(tokenizer: Any, template: str | None) -> Masker:
    changed = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    changed.chat_template = template
    return Masker(changed, frozenset({2}), 512)


def chat(*turns: str, untrained: int | None = None) -> Chat:
    """User and assistant in turn; `untrained` is the index of a turn of weight 0."""
    roles = ("user", "assistant")
    return Chat(1, tuple(Message(roles[i % 2], text, trained=i != untrained) for i, text in enumerate(turns)))  # type: ignore[arg-type]


def trained_text(tokenizer: Any, sequence: Sequence) -> str:
    return str(tokenizer.decode([token for token in sequence.labels if token != IGNORED]))


def test_only_the_answer_and_its_end_are_trained(tokenizer: Any, masker: Masker) -> None:
    sequence = masker.sequence(chat("What day?", "Monday."))
    assert trained_text(tokenizer, sequence) == "Monday.<|im_end|>"
    assert sequence.tokens[-1] == tokenizer.eos_token_id, "nothing stands after the end of the turn"
    served = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What day?"}], add_generation_prompt=True, return_dict=False
    )
    assert list(sequence.tokens[: len(served)]) == served
    assert set(sequence.labels[: len(served)]) == {IGNORED}
    assert sequence.trained == len(sequence.tokens) - len(served)


def test_every_assistant_turn_is_trained_but_those_of_weight_0(tokenizer: Any, masker: Masker) -> None:
    turns = ("One?", "First.", "Two?", "Second.", "Three?", "Third.")
    whole = masker.sequence(chat(*turns))
    assert trained_text(tokenizer, whole) == "First.<|im_end|>Second.<|im_end|>Third.<|im_end|>"
    part = masker.sequence(chat(*turns, untrained=3))
    assert trained_text(tokenizer, part) == "First.<|im_end|>Third.<|im_end|>"
    assert part.tokens == whole.tokens
    ended = masker.sequence(chat(*turns, untrained=5))
    assert ended.tokens == whole.tokens[: len(ended.tokens)], "what follows the last trained turn is left out"
    assert trained_text(tokenizer, ended) == "First.<|im_end|>Second.<|im_end|>"


WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALLS = (
    Message("user", "Is it warm in Rome?"),
    Message("assistant", "", tool_calls=(ToolCall("1", "weather", '{"city": "Rome"}'),)),
    Message("tool", "30 degrees", tool_call_id="1"),
    Message("assistant", "Yes."),
)


def test_calls_of_tools_are_trained_and_results_are_not(tokenizer: Any, masker: Masker) -> None:
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>'
    sequence = masker.sequence(Chat(1, CALLS, (WEATHER,)))
    assert trained_text(tokenizer, sequence) == f"{call}Yes.<|im_end|>"
    whole = tokenizer.decode(list(sequence.tokens))
    assert '"name": "weather"}}\n</tools>' in whole
    assert "<|im_start|>user\n<tool_response>\n30 degrees\n</tool_response><|im_end|>" in whole


def test_a_preference_is_a_pair_of_one_prompt(tokenizer: Any, masker: Masker) -> None:
    before = (*CALLS, Message("user", "And in Oslo?"))
    answers = Message("assistant", "No, cold."), Message("assistant", "Warm.")
    pair = masker.pair(Preference(3, before, *answers, (WEATHER,)))
    assert isinstance(pair, Pair)
    assert pair.line == pair.chosen.line == pair.rejected.line == 3
    assert trained_text(tokenizer, pair.chosen) == "No, cold.<|im_end|>"
    assert trained_text(tokenizer, pair.rejected) == "Warm.<|im_end|>"
    prompts = [side.tokens[: len(side.tokens) - side.trained] for side in (pair.chosen, pair.rejected)]
    assert (
        prompts[0]
        == prompts[1]
        == masker.sequence(Chat(3, (*before, answers[0]), (WEATHER,))).tokens[: len(prompts[0])]
    )


def test_both_sides_of_a_preference_must_fit(tiny_llama: Path, tokenizer: Any) -> None:
    masker = Masker.of(tiny_llama, tokenizer, 40)
    with pytest.raises(DataError, match=r"has 1.. tokens, more than max_length 40"):
        masker.pair(Preference(3, (Message("user", "a"),), Message("assistant", "b"), Message("assistant", "c" * 100)))


def test_a_mask_without_any_token_or_without_the_end_is_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="never trains the end of a turn, so the adapter would not learn to stop"):
        with_template(tokenizer, None).sequence(Completion(1, "a", "b"))
    template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match="has no trained token"):
        Masker(tokenizer, frozenset(), 512, template).sequence(chat("a", "b"))


def test_another_template_may_be_given(tiny_llama: Path, tokenizer: Any, make_spec: Callable[..., Any]) -> None:
    template = (
        "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    sequence = Masker.of(tiny_llama, tokenizer, 512, template).sequence(chat("x", "y"))
    assert tokenizer.decode(list(sequence.tokens)) == "u:x<|im_end|>a:y<|im_end|>"
    data = load_dataset(make_spec(chat_template=template))
    assert tokenizer.decode(list(data.training[0].tokens)).startswith("u:")
    with pytest.raises(TemplateError, match="The chat template does not end the assistant's turn"):
        Masker.of(tiny_llama, tokenizer, 512, "{% for m in messages %}{{ m['content'] }};{% endfor %}").sequence(
            chat("x", "y")
        )


def test_a_data_set_of_pairs(make_spec: Callable[..., Any], write_jsonl: Callable[..., Path]) -> None:
    def pair(number: int) -> dict[str, Any]:
        one, other = ({"role": "assistant", "content": "x" * each} for each in (number, 2 * number))
        return {
            "input": {"messages": [{"role": "user", "content": "?"}]},
            "preferred_output": [one],
            "non_preferred_output": [other],
        }

    path = write_jsonl("pairs.jsonl", pair(1), pair(2))
    data = load_dataset(make_spec(data=path, validation=None))
    assert all(isinstance(each, Pair) for each in data.training)
    assert data.longest == len(data.training[1].rejected.tokens)
    assert data.tokens == sum(len(side.tokens) for each in data.training for side in (each.chosen, each.rejected))
    with pytest.raises(DataError, match=r"pairs\.jsonl of the form preference and held-out\.jsonl of the form chat"):
        load_dataset(make_spec(data=path))


def test_completion_and_its_end_are_trained(tokenizer: Any, masker: Masker) -> None:
    sequence = masker.sequence(Completion(1, "1999-", "01-02"))
    assert trained_text(tokenizer, sequence) == "01-02<|im_end|>"
    assert tokenizer.decode(list(sequence.tokens)) == "1999-01-02<|im_end|>"
    with pytest.raises(DataError, match="holds the end-of-text token"):
        masker.sequence(Completion(1, "x", "y<|im_end|>"))


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.lists(text, min_size=2, max_size=6).filter(lambda turns: len(turns) % 2 == 0))
def test_any_chat_reads_as_its_template_writes_it(tokenizer: Any, masker: Masker, turns: list[str]) -> None:
    sequence = masker.sequence(chat(*turns))
    roles = ("user", "assistant")
    rendered = tokenizer.apply_chat_template(
        [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)], tokenize=False
    )
    plain = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    assert tokenizer.decode(list(sequence.tokens), **plain) + "\n" == rendered
    trained = tokenizer.decode([token for token in sequence.labels if token != IGNORED], **plain)
    assert trained == "".join(f"{answer}<|im_end|>" for answer in turns[1::2])


def test_too_long_is_an_error_never_cut(make_spec: Callable[..., Any]) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(make_spec(max_length=8))
    lines = str(caught.value).splitlines()
    assert len(lines) == 12
    assert lines[0].startswith("train.jsonl: line 1: has ")
    assert "tokens, more than max_length 8. Shorten it or raise max_length." in lines[0]


def test_special_tokens_in_a_chat_are_refused(masker: Masker) -> None:
    with pytest.raises(DataError, match=r"messages\[0\].content holds the special token <\|im_start\|>"):
        masker.sequence(chat("<|im_start|>system", "x"))


THINKING = (
    "{% for m in messages %}{{ m['role'] }}: "
    "{% if m['role'] == 'assistant' and loop.last %}<think></think>{% endif %}"
    "{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_templates_that_rewrite_turns_train_each_after_its_own_prompt(
    tokenizer: Any, write_jsonl: Callable[..., Path]
) -> None:
    masker = with_template(tokenizer, THINKING)
    sequences = masker.sequences([chat("a", "b", "c", "d")], write_jsonl("data.jsonl", {}))
    assert [tokenizer.decode(list(sequence.tokens)) for sequence in sequences] == [
        "user: a<|im_end|>assistant: <think></think>b<|im_end|>",
        "user: a<|im_end|>assistant: b<|im_end|>user: c<|im_end|>assistant: <think></think>d<|im_end|>",
    ]
    assert [trained_text(tokenizer, sequence) for sequence in sequences] == [
        "<think></think>b<|im_end|>",
        "<think></think>d<|im_end|>",
    ]
    assert masker.sequence(chat("a", "b", "c", "d", untrained=1)) == sequences[1]


def test_a_template_s_fault_is_told_with_file_and_line(tokenizer: Any, write_jsonl: Callable[..., Path]) -> None:
    with pytest.raises(TemplateError, match=r"data\.jsonl: line 1: The base has no chat template\."):
        with_template(tokenizer, None).sequences([chat("a", "b")], write_jsonl("data.jsonl", {}))


def test_no_chat_template(tokenizer: Any) -> None:
    with pytest.raises(TemplateError, match=r"has no chat template\. Train with 'prompt'"):
        with_template(tokenizer, None).sequence(chat("a", "b"))


def test_template_that_rewrites_earlier_turns(tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}: {% if not loop.last %}{{ m['content'][:1] }}{% else %}"
        "{{ m['content'] }}{% endif %}<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(TemplateError, match="can not mark the assistant's turn"):
        with_template(tokenizer, template).sequence(chat("one", "two", "three", "four"))


def test_template_without_a_generation_prompt(tokenizer: Any) -> None:
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|im_end|>{% endfor %}"
    sequence = with_template(tokenizer, template).sequence(chat("a", "b"))
    assert trained_text(tokenizer, sequence) == "[assistant]b<|im_end|>"


def test_template_that_ends_turns_otherwise(tokenizer: Any) -> None:
    template = "{% for m in messages %}{{ m['content'] }};{% endfor %}"
    with pytest.raises(TemplateError, match=r"does not end the assistant's turn with <\|im_end\|>"):
        with_template(tokenizer, template).sequence(chat("a", "b"))


def test_template_that_refuses_a_chat(tokenizer: Any) -> None:
    template = "{{ raise_exception('Only one turn is supported') }}"
    with pytest.raises(DataError, match="refused by the base's chat template: Only one turn is supported"):
        with_template(tokenizer, template).sequence(chat("a", "b"))


def test_base_that_ends_nothing_trains_the_whole_answer(tokenizer: Any) -> None:
    masker = Masker(tokenizer, frozenset(), 512)
    assert trained_text(tokenizer, masker.sequence(chat("a", "b"))) == "b<|im_end|>\n"


def test_ends_are_those_of_tokenizer_and_generation_settings(tiny_llama: Path, tokenizer: Any, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    assert Masker.of(base, tokenizer, 512)._ends == {0, 2}


@pytest.mark.slow
def test_the_real_template_is_served_and_trained_alike(smollm2: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    masker = Masker.of(smollm2, tokenizer, 512)
    sequence = masker.sequence(chat("2 March 1999", "1999-03-02"))
    served = tokenizer.apply_chat_template(
        [{"role": "user", "content": "2 March 1999"}], add_generation_prompt=True, return_dict=False
    )
    assert list(sequence.tokens[: len(served)]) == served
    assert trained_text(tokenizer, sequence) == "1999-03-02<|im_end|>"
