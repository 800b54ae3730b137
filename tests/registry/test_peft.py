"""What PEFT saves can be pushed, and what is pulled loads with PEFT unchanged, with the same weights."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import Fingerprint, Registry
from swapmeet_registry.admission.admit import admit
from swapmeet_registry.bases import module_shapes
from swapmeet_registry.fingerprint import fingerprint

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

VARIANTS: dict[str, dict[str, Any]] = {
    "all linear": {},
    "attention": {"rank": 3, "targets": ("q_proj", "o_proj"), "lora_alpha": 7, "use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 5}, "alpha_pattern": {"v_proj": 3}},
    "redundant": {"rank_pattern": {"q_proj": 4, "v_proj": 6}, "alpha_pattern": {"o_proj": 8}},
    "dropout": {"lora_dropout": 0.1, "init_lora_weights": "gaussian"},
    "dora": {"use_dora": True},
    "bias": {"lora_bias": True},
    "ends": {"targets": ("embed_tokens", "lm_head", "q_proj")},
    "saved": {"modules_to_save": ["norm", "embed_tokens", "lm_head"]},
    "tokens": {"trainable_token_indices": [5, 3, 9]},
    "layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "all but": {"exclude_modules": ["up_proj", "lm_head"]},
    "other order": {"rank_pattern": {r"^model\.layers\.0\.self_attn\.q_proj": 2, "q_proj": 6}},
}


def load(base: Path, folder: Path) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on tied heads and merging
        model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    return {
        name: value.clone()
        for name, value in model.state_dict().items()
        if any(part in name for part in ("lora_", "modules_to_save", "trainable_tokens"))
    }


# PEFT 0.21 asks transformers 5.23 for an attribute under its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapter_trained_elsewhere_survives_the_way(
    store_url: str, tiny_llama: Path, random_lora: Callable[..., Path], tmp_path: Path, variant: str
) -> None:
    folder = random_lora(tiny_llama, tmp_path / "trained", **VARIANTS[variant])
    base = fingerprint(tiny_llama, "tiny-llama")
    registry = Registry(store_url)
    registry.push(folder, "acme/legal", base=base, modules=module_shapes(tiny_llama))
    registry.pull("acme/legal", tmp_path / "pulled", base=base)
    sent, received = load(tiny_llama, folder), load(tiny_llama, tmp_path / "pulled")
    assert sent.keys() == received.keys()
    assert len(sent) > 0
    assert all(torch.equal(sent[name], received[name]) for name in sent)
    assert any(value.abs().sum() > 0 for name, value in received.items() if "lora_B" in name)


def test_half_precision_weights_are_admitted(
    tiny_qwen2: Path, random_lora: Callable[..., Path], tmp_path: Path, base: Fingerprint
) -> None:
    from safetensors.torch import load_file, save_file

    folder = random_lora(tiny_qwen2, tmp_path / "trained")
    weights = load_file(folder / "adapter_model.safetensors")
    for dtype in (torch.bfloat16, torch.float16):
        save_file({name: value.to(dtype) for name, value in weights.items()}, folder / "adapter_model.safetensors")
        with admit(folder, base, module_shapes(tiny_qwen2)) as admitted:
            assert admitted.lora.parameters == sum(value.numel() for value in weights.values())


def test_weights_that_peft_wrote_are_canonical_already(
    tiny_qwen2: Path, random_lora: Callable[..., Path], tmp_path: Path, base: Fingerprint
) -> None:
    with admit(random_lora(tiny_qwen2, tmp_path / "trained", use_dora=True), base) as admitted:
        assert (admitted.folder / "adapter_model.safetensors").is_symlink()


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"ensure_weight_tying": True, "targets": ("embed_tokens",)}, "ensure_weight_tying"),
    ],
)
def test_what_peft_can_and_swapmeet_can_not_is_refused_by_name(
    tiny_llama: Path, random_lora: Callable[..., Path], tmp_path: Path, base: Fingerprint, config: Any, key: str
) -> None:
    folder = random_lora(tiny_llama, tmp_path / "trained", **config)
    with pytest.raises(ValueError, match=f"uses {key}: "), admit(folder, base):
        pass


@pytest.mark.parametrize("base_name", ["tiny_llama", "tiny_qwen2"])
def test_shapes_read_from_the_files_are_those_of_the_model(base_name: str, request: pytest.FixtureRequest) -> None:
    """The output head too, where it is tied and so not in the files."""
    from transformers import AutoModelForCausalLM

    folder = request.getfixturevalue(base_name)
    modules = AutoModelForCausalLM.from_pretrained(folder).named_modules()
    wanted = {name: tuple(each.weight.shape) for name, each in modules if hasattr(each, "weight")}
    assert module_shapes(folder) == wanted
