"""What the finished adapter answers to held-out prompts: whose they are, where they end, and that nothing fails."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry.origin.provenance import Examples, Provenance
from swapmeet_training import FineTune, SpecError, fine_tune, run
from swapmeet_training.data.examples import Chat, Completion, Message, Preference
from swapmeet_training.loop import answering
from swapmeet_training.loop.answering import prompt_of

pytest.importorskip("torch")

MakeSpec = Callable[..., FineTune]


@pytest.fixture(autouse=True)
def _few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "MAX_TOKENS", 12)


def kept(folder: Path) -> Examples:
    return Examples.model_validate_json((folder / "examples.json").read_text())


def test_examples_stay_beside_the_adapter_unless_they_are_shown(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(max_steps=2, seed=5)
    hidden = run(spec, tmp_path / "hidden")
    shown = run(spec.model_copy(update={"examples": 2, "show_examples": True}), tmp_path / "shown")
    none = run(spec.model_copy(update={"examples": 0}), tmp_path / "none")
    assert spec.validation is not None
    rows = [json.loads(line) for line in spec.validation.read_text().splitlines()]

    found = kept(tmp_path / "hidden")
    assert [each.prompt for each in found.answers] == [row["messages"][0]["content"] for row in rows[:3]]
    assert (found.base, found.seed, found.max_tokens) == (spec.base_fingerprint.weights, 5, 12)
    assert hidden.examples == found
    told = "".join(path.read_text(errors="replace") for path in hidden.adapter.iterdir())
    assert all(each.prompt not in told for each in found.answers), "what was not to be shown is in the adapter"

    provenance = Provenance.read(shown.adapter)
    assert provenance is not None
    assert provenance.examples == shown.examples == kept(tmp_path / "shown")
    assert shown.examples is not None
    assert [each.prompt for each in shown.examples.answers] == [each.prompt for each in found.answers[:2]]
    assert none.examples is None
    assert not (tmp_path / "none" / "examples.json").exists()
    weights = {(each.adapter / "adapter_model.safetensors").read_bytes() for each in (hidden, shown, none)}
    assert len(weights) == 1


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT 0.21, loading
@pytest.mark.parametrize("settings", [{}, {"init": "pissa"}])
def test_the_published_adapter_gives_these_answers(
    make_spec: MakeSpec, tmp_path: Path, tiny_llama: Path, settings: dict[str, Any]
) -> None:
    """Learnt by heart, so that no rounding decides; the best evaluation's weights are published, not the last."""
    import peft
    import torch

    from swapmeet_registry.bases.nf4 import load_nf4
    from swapmeet_training.data.dataset import load_tokenizer

    spec = make_spec(4, epochs=15, eval_every=15, save_every=15, learning_rate=2e-2, **settings)
    result = run(spec.model_copy(update={"validation": spec.data}), tmp_path / "run")
    assert result.examples is not None
    tokenizer = load_tokenizer(tiny_llama)
    model = peft.PeftModel.from_pretrained(load_nf4(tiny_llama), result.adapter).eval()
    for each in result.examples.answers:
        turns = [{"role": "user", "content": each.prompt}]
        tokens = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        with torch.no_grad():
            made = model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()
        first = tokenizer.decode([int(made)], skip_special_tokens=True)
        assert each.output.startswith(first), (each, first)


def test_the_weights_that_are_published_answer_and_not_the_last(
    make_spec: MakeSpec, write_jsonl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held out is what the training makes ever less likely, so that the first evaluation is the best."""
    import torch
    from safetensors.torch import load_file

    from swapmeet_training.lora import adapter

    used: dict[str, torch.Tensor] = {}

    def look(_: FineTune, model: Any, *__: object) -> None:
        used.update(adapter.weights(model))

    monkeypatch.setattr("swapmeet_training.qlora.answered", look)
    turns = [{"role": "user", "content": "1 May 1999"}, {"role": "assistant", "content": "zzzz qqqq xxxx"}]
    held_out = write_jsonl("other.jsonl", {"messages": turns})
    spec = make_spec(validation=held_out, learning_rate=5e-2, warmup_ratio=0, eval_every=1, max_steps=4)
    result = run(spec, tmp_path / "run")
    assert result.metrics["best_step"] < 4, "or the test shows nothing"
    published = load_file(result.adapter / "adapter_model.safetensors")
    assert used.keys() == published.keys()
    assert all(torch.equal(used[name], tensor) for name, tensor in published.items())


def test_a_failure_is_told_and_fails_nothing(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise MemoryError("CUDA out of memory")

    monkeypatch.setattr(answering, "_generate", broken)
    result = run(make_spec(max_steps=1, show_examples=True), tmp_path / "run")
    assert "was asked nothing" in result.unanswered
    assert result.examples is None
    provenance = Provenance.read(result.adapter)
    assert provenance is not None
    assert provenance.examples is None


def test_time_is_bounded(make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "MAX_SECONDS", 0.0)
    monkeypatch.setattr(answering, "MAX_TOKENS", 10_000)
    result = run(make_spec(max_steps=1), tmp_path / "run")
    assert result.examples is not None
    assert {each.ended for each in result.examples.answers} <= {"time", "stop"}


def test_pairs_are_asked_their_prompt(tiny_llama: Path, make_spec: MakeSpec, write_jsonl: Any, tmp_path: Path) -> None:
    def says(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    row = {"input": {"messages": [{"role": "user", "content": "Which?"}]}}
    row |= {"preferred_output": says("this"), "non_preferred_output": says("that")}
    data = write_jsonl("pairs.jsonl", row)
    spec = make_spec(data=data, validation=data, method="dpo", max_steps=1, learning_rate=1e-4)
    result = run(spec, tmp_path / "run")
    assert result.examples is not None, result.unanswered
    assert [each.prompt for each in result.examples.answers] == ["Which?"]


def test_what_a_prompt_reads_like() -> None:
    system, user = Message("system", "Be brief."), Message("user", "Hi")
    answer, silent = Message("assistant", "Ho"), Message("assistant", "Ho", trained=False)
    assert prompt_of(Completion(1, "Once \ud800", " upon")) == "Once ?"
    assert prompt_of(Chat(1, (user, answer))) == "Hi"
    assert prompt_of(Chat(1, (system, user, answer, user, silent))) == "system: Be brief.\n\nuser: Hi"
    assert prompt_of(Preference(1, (user,), answer, silent)) == "Hi"
    assert prompt_of(Chat(1, (user, answer), ({"name": "look"},))) is None


def test_settings_that_show_nothing_are_refused_together(make_spec: MakeSpec) -> None:
    given = make_spec().model_dump() | {"validation": None, "examples": 2, "show_examples": True}
    with pytest.raises(SpecError, match=r"examples needs held-out .* show_examples needs held-out"):
        fine_tune(given)
    with pytest.raises(SpecError, match="shows none where examples is 0"):
        fine_tune(make_spec().model_dump() | {"examples": 0, "show_examples": True})
    with pytest.raises(SpecError, match="examples is 99 but"):
        fine_tune(make_spec().model_dump() | {"examples": 99})
