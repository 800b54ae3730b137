"""What PEFT saves can be pushed, and what is pulled loads with PEFT unchanged, with the same weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import Fingerprint, Registry
from swapmeet_registry.admission import admit
from swapmeet_registry.fingerprint import fingerprint

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

VARIANTS: dict[str, dict[str, Any]] = {
    "all linear": {},
    "attention": {"rank": 3, "targets": ("q_proj", "o_proj"), "lora_alpha": 7, "use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 5}, "alpha_pattern": {"v_proj": 3}},
    "dropout": {"lora_dropout": 0.1, "init_lora_weights": "gaussian"},
}


def load(base: Path, folder: Path) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    return {name: value.clone() for name, value in model.state_dict().items() if "lora_" in name}


# PEFT 0.21 asks transformers 5.23 for an attribute under its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapter_trained_elsewhere_survives_the_way(
    url: str, tiny_llama: Path, random_lora: Callable[..., Path], tmp_path: Path, variant: str
) -> None:
    folder = random_lora(tiny_llama, tmp_path / "trained", **VARIANTS[variant])
    base = fingerprint(tiny_llama, "tiny-llama")
    registry = Registry(url)
    registry.push(folder, "acme/legal", base=base, modules=linear_shapes(tiny_llama))
    registry.pull("acme/legal", tmp_path / "pulled", base=base)
    sent, received = load(tiny_llama, folder), load(tiny_llama, tmp_path / "pulled")
    assert sent.keys() == received.keys()
    assert len(sent) > 0
    assert all(torch.equal(sent[name], received[name]) for name in sent)
    assert any(value.abs().sum() > 0 for name, value in received.items() if "lora_B" in name)


def linear_shapes(base: Path) -> dict[str, tuple[int, int]]:
    from transformers import AutoModelForCausalLM

    modules = AutoModelForCausalLM.from_pretrained(base).named_modules()
    return {
        name: (module.out_features, module.in_features)
        for name, module in modules
        if isinstance(module, torch.nn.Linear)
    }


def test_half_precision_weights_are_admitted(
    tiny_qwen2: Path, random_lora: Callable[..., Path], tmp_path: Path, base: Fingerprint
) -> None:
    from safetensors.torch import load_file, save_file

    folder = random_lora(tiny_qwen2, tmp_path / "trained")
    weights = load_file(folder / "adapter_model.safetensors")
    for dtype in (torch.bfloat16, torch.float16):
        save_file({name: value.to(dtype) for name, value in weights.items()}, folder / "adapter_model.safetensors")
        assert admit(folder, base, linear_shapes(tiny_qwen2)).lora.parameters == sum(
            v.numel() for v in weights.values()
        )


@pytest.mark.parametrize(
    "config",
    [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"lora_bias": True}, {"trainable_token_indices": [1, 2]}],
    ids=lambda config: next(iter(config)),
)
def test_what_peft_can_and_swapmeet_can_not_is_refused_by_name(
    tiny_llama: Path, random_lora: Callable[..., Path], tmp_path: Path, base: Fingerprint, config: dict[str, Any]
) -> None:
    folder = random_lora(tiny_llama, tmp_path / "trained", **config)
    with pytest.raises(ValueError, match=f"uses {next(iter(config))}: "):
        admit(folder, base)
