"""A base's shape from its config alone, against what transformers makes of the same config."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry.errors import BaseInvalid, Refused
from swapmeet_training.plan import BaseShape
from swapmeet_training.plan.families import FAMILIES

SMALL = {
    "vocab_size": 384,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in FAMILIES),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {"head_dim": 64}),
    ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    ("gpt_neox", {"attention_bias": False}),
    ("starcoder2", {"use_bias": False}),
]


def made(architecture: str, changes: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """A config as it is saved, and the model that transformers makes of it, without memory for its weights."""
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(architecture, **SMALL | changes)
    with torch.device("meta"):
        return config.to_diff_dict(), AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(("architecture", "changes"), CASES, ids=lambda value: str(value))
def test_every_weight_is_as_transformers_makes_it(architecture: str, changes: dict[str, Any]) -> None:
    from torch.nn import Linear

    config, model = made(architecture, changes)
    shape = BaseShape.from_config(config)
    assert dict(shape.weights) == {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert shape.parameters == sum(weight.numel() for weight in model.parameters())
    head = model.get_output_embeddings()
    linear = {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, Linear) and module is not head
    }
    assert dict(shape.linears) == linear
    assert len(shape.layers) == 3
    assert shape.tied == (head.weight is model.get_input_embeddings().weight)


def test_defaults_that_a_config_leaves_out_are_transformers_own() -> None:
    from transformers import AutoConfig

    for architecture, family in FAMILIES.items():
        config = AutoConfig.for_model(architecture)
        for name, value in family.defaults.items():
            assert getattr(config, name) == value, (architecture, name)
        if "num_key_value_heads" not in family.defaults and architecture != "gpt_neox":
            assert config.num_key_value_heads == config.num_attention_heads, architecture


def test_the_real_base(smollm2: Path) -> None:
    shape = BaseShape.of(smollm2)
    assert shape.parameters == 134_515_008
    assert (len(shape.layers), shape.hidden, shape.inner, shape.heads, shape.kv_heads) == (30, 576, 1536, 9, 3)
    assert shape.tied
    assert shape.gated


def test_an_unknown_architecture_is_read_from_its_weights(tiny_qwen2: Path, tmp_path: Path) -> None:
    known = BaseShape.of(tiny_qwen2)
    shutil.copytree(tiny_qwen2, tmp_path / "base")
    config = json.loads((tmp_path / "base/config.json").read_text())
    (tmp_path / "base/config.json").write_text(json.dumps(config | {"model_type": "novel"}))
    shape = BaseShape.of(tmp_path / "base")
    assert shape.architecture == "novel"
    assert shape.weights == known.weights
    assert shape.linears == known.linears
    assert (shape.tied, shape.inner, shape.activation) == (False, 256, "silu")
    (tmp_path / "base/model.safetensors").write_bytes(b"nothing")
    with pytest.raises(Refused):
        BaseShape.of(tmp_path / "base")
    (tmp_path / "base/model.safetensors").unlink()
    with pytest.raises(BaseInvalid, match=r"architecture 'novel'.*llama.*Put the weights"):
        BaseShape.of(tmp_path / "base")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "architecture 'None'"),
        ('{"model_type": "llama"}', "vocab_size None"),
        (json.dumps({"model_type": "llama", **SMALL, "hidden_size": -1}), "hidden_size -1"),
        (json.dumps({"model_type": "llama", **SMALL, "num_hidden_layers": 1.5}), "num_hidden_layers 1.5"),
        (json.dumps({"model_type": "llama", **SMALL, "num_attention_heads": True}), "num_attention_heads True"),
    ],
)
def test_a_damaged_config_is_refused(config: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(BaseInvalid, match=says):
        BaseShape.of(tmp_path)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseInvalid, match=r"no config\.json"):
        BaseShape.of(tmp_path)
