"""DPO: the same loss, rewards and gradients as TRL's, against the base or the parent; and it learns to prefer."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry.fingerprint import Fingerprint, Quantization
from swapmeet_training import FineTune, Progress, run
from swapmeet_training.data.masking import Pair

torch = pytest.importorskip("torch")
trl = pytest.importorskip("trl")

pytestmark = [
    pytest.mark.filterwarnings("ignore:An output with one or more elements was resized:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
MakePair = Callable[[int, dict[str, list[int]]], Pair]
ROWS = [
    {"prompt": "The quick brown fox", "chosen": " jumps over the lazy dog", "rejected": " sleeps"},
    {"prompt": "Tell me", "chosen": " a story", "rejected": " a short story about a village near the sea"},
    {"prompt": "user", "chosen": " question answer", "rejected": " 0123456789"},
]


def spec_of(base: Path, **settings: Any) -> FineTune:
    return FineTune(
        **{
            "name": "acme/preference",
            "base": base,
            "base_fingerprint": Fingerprint(name="base", weights="sha256:0", tokenizer="sha256:0"),
            "data": Path("unread.jsonl"),
            "method": "dpo",
            "beta": 0.3,
            "gradient_checkpointing": False,
        }
        | settings
    )


def exact(base: Path) -> Any:
    """The base unquantised in fp32, as TRL can train it without rounding the adapter to bf16."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).requires_grad_(False)
    model.config.use_cache = False
    return model


def moved(model: Any) -> Any:
    """Away from where the run started, so that rewards are not zero."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".default." in name:
                weight += 0.05 * torch.randn_like(weight)
    return model


def trained_by_trl(model: Any, base: Path, folder: Path, **more: Any) -> Any:
    """TRL's trainer over ROWS."""
    import datasets
    from transformers import AutoTokenizer

    arguments = trl.DPOConfig(
        output_dir=str(folder),
        beta=0.3,
        use_cpu=True,
        bf16=False,
        max_length=None,
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trl.DPOTrainer(
            model=model,
            args=arguments,
            train_dataset=datasets.Dataset.from_list(ROWS),
            processing_class=AutoTokenizer.from_pretrained(base),
            **more,
        )


def gradients(model: Any) -> dict[str, Any]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if ".default." in name}


@pytest.mark.parametrize("reference", ["base", "parent"])
def test_loss_rewards_and_gradients_are_those_of_trl(
    make_pair: MakePair, tiny_llama: Path, tmp_path: Path, random_lora: Callable[..., Path], reference: str
) -> None:
    import peft

    from swapmeet_training.loop.preference import Preference
    from swapmeet_training.lora import adapter
    from swapmeet_training.lora.model import attach_lora

    parent = random_lora(tiny_llama, tmp_path / "parent", rank=4)
    if reference == "parent":
        spec = spec_of(tiny_llama, parent=parent, target_modules="all-linear")
        theirs = peft.PeftModel.from_pretrained(exact(tiny_llama), parent, is_trainable=True)
        trainer = trained_by_trl(theirs, tiny_llama, tmp_path / "trl")
    else:
        spec = spec_of(tiny_llama, rank=4)
        config = peft.LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = trained_by_trl(exact(tiny_llama), tiny_llama, tmp_path / "trl", peft_config=config)
    ours = attach_lora(exact(tiny_llama), spec)
    if reference == "base":  # the same start, of which only A is random
        adapter.set_weights(trainer.model, adapter.weights(ours))
    moved(trainer.model), moved(ours)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(len(ROWS))])
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()

    pairs = [make_pair(line, row) for line, row in enumerate(trainer.train_dataset)]
    objective = Preference(0, spec.beta, lambda: adapter.reference(ours))
    ours.train()
    losses, sums = 0.0, {"reward_accuracy": 0.0, "reward_margin": 0.0}
    for each in pairs:  # one at a time, accumulated
        score = objective.score(ours, [each])
        (score.loss / objective.count(pairs)).backward()
        losses += float(score.loss.detach()) / len(pairs)
        sums = {name: value + float(score.sums[name]) / len(pairs) for name, value in sums.items()}
    assert losses == pytest.approx(float(loss.detach()), rel=3e-6)
    assert abs(losses - 0.6931) > 0.01, "the rewards are not zero"
    assert sums["reward_accuracy"] == pytest.approx(trainer._metrics["train"]["rewards/accuracies"][-1])
    assert sums["reward_margin"] == pytest.approx(trainer._metrics["train"]["rewards/margins"][-1], abs=1e-5)
    expected = gradients(trainer.model)
    for name, gradient in gradients(ours).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{}, {"init": "pissa", "rank": 4}, {"dora": True}, {"gradient_checkpointing": True}]
)
def test_at_the_start_the_model_is_its_own_reference(
    make_pair: MakePair, tiny_llama: Path, settings: dict[str, Any]
) -> None:
    """So the loss is log 2 and no reward is given, and switching back and forth trains the same weights."""
    from swapmeet_training.loop.preference import Preference
    from swapmeet_training.lora import adapter
    from swapmeet_training.lora.model import attach_lora, load_base

    base = load_base(tiny_llama, quantization=Quantization(compute_dtype="float32"))
    model = attach_lora(base, spec_of(tiny_llama, **settings))
    before = {name for name, weight in model.named_parameters() if weight.requires_grad}
    pairs = [make_pair(1, {"prompt_ids": [5, 6], "chosen_ids": [7, 8, 2], "rejected_ids": [9, 2]})]
    score = Preference(0, 0.5, lambda: adapter.reference(model)).score(model.train(), pairs)
    assert float(score.loss.detach()) == pytest.approx(0.693147, abs=1e-3)
    assert abs(float(score.sums["reward_margin"])) < 1e-3
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == before


@pytest.mark.usefixtures("pairs")
@pytest.mark.parametrize("with_parent", [False, True])
def test_a_run_learns_what_is_preferred(
    make_spec: Callable[..., FineTune],
    write_jsonl: Callable[..., Path],
    random_lora: Callable[..., Path],
    tiny_llama: Path,
    tmp_path: Path,
    with_parent: bool,
) -> None:
    rows = [{"prompt_ids": [5, 6, n], "chosen_ids": [n, 8, 2], "rejected_ids": [9, n, 9, 2]} for n in range(10, 22)]
    settings: dict[str, Any] = {"method": "dpo", "data": write_jsonl("pairs.jsonl", *rows[:8])}
    settings |= {"validation": write_jsonl("held.jsonl", *rows[8:])}
    if with_parent:
        settings |= {"parent": random_lora(tiny_llama, tmp_path / "parent", rank=4, lora_alpha=32)}
    told: list[Progress] = []
    result = run(make_spec(epochs=4, learning_rate=1e-3, **settings), tmp_path / "run", report=told.append)
    assert told[0].loss == pytest.approx(0.6931, abs=0.05)
    assert told[0].metrics["reward_margin"] == pytest.approx(0, abs=0.1)
    assert told[-1].loss < 0.5
    assert told[-1].metrics["reward_accuracy"] == 1
    assert told[-1].metrics["reward_margin"] > 0.5
    assert result.metrics["eval_reward_accuracy"] == 1
    assert {row.tokens for row in result.worst} == {7}
    assert sorted(row.line for row in result.worst) == list(range(1, 9))
    assert (result.adapter / "adapter_model.safetensors").is_file()
    assert not (result.adapter / "reference").exists()
