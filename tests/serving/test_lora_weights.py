"""What is not a LoRA adapter of this very base is refused by the name of the part that is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_serving import Engine, Request, Sampling
from swapmeet_serving.errors import AdapterUnsupported

Refusal = Callable[[Path], AdapterUnsupported]


@pytest.fixture
def folder(tiny_llama: Path, random_lora: Callable[..., Path], tmp_path: Path) -> Path:
    return random_lora(tiny_llama, tmp_path / "adapter", rank=4, targets=("q_proj", "lm_head"))


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> Engine:
    return Engine(tiny_llama, fetch=Path, kv_bytes=1 << 20, threads=1)


@pytest.fixture
def refusal(engine: Engine, answer: Callable[..., Any]) -> Refusal:
    def ask(folder: Path) -> AdapterUnsupported:
        (only,) = answer(engine, Request("one", (5, 6), str(folder), Sampling(max_tokens=1)))["one"]
        assert isinstance(only.error, AdapterUnsupported)
        return only.error

    return ask


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "trained biases"),
        ({"lora_bias": True}, "a bias in lora_B"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
        ({"trainable_token_indices": [3]}, "trained token embeddings"),
        ({"layer_replication": [[0, 1]]}, "layer replication"),
        ({"alora_invocation_tokens": [3]}, "activated LoRA"),
        ({"use_dora": True, "modules_to_save": ["x"]}, "DoRA, modules_to_save"),
    ],
)
def test_unsupported_kinds(folder: Path, refusal: Refusal, setting: dict[str, Any], part: str) -> None:
    configure(folder, **setting)
    assert f"uses {part}, which is not served" in str(refusal(folder))


def test_another_method(folder: Path, refusal: Refusal) -> None:
    configure(folder, peft_type="IA3")
    assert "is not a LoRA adapter" in str(refusal(folder))


def test_files_that_are_missing_or_no_json(folder: Path, refusal: Refusal) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "has no adapter_model.safetensors" in str(refusal(folder))
    (folder / "adapter_config.json").write_text("{")
    assert "no readable adapter_config.json" in str(refusal(folder))


def test_a_module_that_the_base_lacks(folder: Path, refusal: Refusal) -> None:
    change_weights(folder, lambda w: w.update({NAME.format("A").replace("q_proj", "z_proj"): w[NAME.format("A")] * 1}))
    assert "adapts model.layers.0.self_attn.z_proj, which is no linear layer of this base" in str(refusal(folder))


def test_a_weight_of_another_kind(folder: Path, refusal: Refusal) -> None:
    change_weights(folder, lambda w: w.update({"base_model.model.model.norm.weight": w[NAME.format("A")] * 1}))
    assert "holds base_model.model.model.norm.weight, which is not a LoRA weight" in str(refusal(folder))


def test_another_shape(folder: Path, refusal: Refusal) -> None:
    change_weights(folder, lambda w: w.update({NAME.format("B"): w[NAME.format("B")][:64].clone()}))
    assert f"should have {NAME.format('B')} of shape (128, 4) and has (64, 4)" in str(refusal(folder))


def test_half_a_pair(folder: Path, refusal: Refusal) -> None:
    change_weights(folder, lambda w: w.pop(NAME.format("B")))
    assert f"should have {NAME.format('B')} of shape (128, 4) and has none" in str(refusal(folder))


def test_a_rank_other_than_configured(folder: Path, refusal: Refusal) -> None:
    configure(folder, r=8)
    assert "of shape (8, 128) and has (4, 128)" in str(refusal(folder))


def test_an_output_head_that_was_trained(folder: Path, refusal: Refusal) -> None:
    copy = "base_model.model.lm_head.base_layer.weight"
    change_weights(folder, lambda w: w.update({copy: w[copy] + 0.1}))
    assert f"brings a trained {copy}, which is not served" in str(refusal(folder))


def test_a_refused_adapter_holds_no_room(folder: Path, refusal: Refusal, engine: Engine) -> None:
    copy = "base_model.model.lm_head.base_layer.weight"
    change_weights(folder, lambda w: w.update({copy: w[copy] + 0.1}))
    refusal(folder)
    assert engine.resident == []
    assert engine._adapters._bank.used == 0
