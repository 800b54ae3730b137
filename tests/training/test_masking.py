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
from swapmeet_training.data import Chat, Completion, Message
from swapmeet_training.masking import IGNORED, Masker, Sequence

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def masker(tiny_llama: Path, tokenizer: Any) -> Masker:
    return Masker.of(tiny_llama, tokenizer, 512)


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
