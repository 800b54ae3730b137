"""What is not a LoRA adapter of this very base is refused by the name of the part that is wrong."""

import json
from collections.abc import Callable
from functools import partial
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


def coarsen(dtype: Any, weights: dict[str, Any]) -> None:
    """To numbers that every dtype can say."""
    weights |= {name: (weight * 16).round().to(dtype) / 16 for name, weight in weights.items()}


NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ({"bias": "all"}, "bias: input should be 'none'"),
        ({"layer_replication": [[0, 1]]}, "uses layer_replication: replicated layers"),
        ({"alora_invocation_tokens": [3]}, "uses alora_invocation_tokens: activated LoRA"),
        ({"use_dora": True}, "lacks its lora_magnitude_vector"),
    ],
)
def test_what_may_not_be_published_is_not_served(
    folder: Path, refusal: Refusal, setting: dict[str, Any], part: str
) -> None:
    """The registry's own checks, in its own words."""
    configure(folder, **setting)
    assert f"{folder} can not be served. " in str(refusal(folder))
    assert part in str(refusal(folder))


def test_another_method(folder: Path, refusal: Refusal) -> None:
    configure(folder, peft_type="IA3")
    assert "peft_type: input should be 'LORA'" in str(refusal(folder))


def test_no_weights(folder: Path, refusal: Refusal) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "has no adapter_model.safetensors" in str(refusal(folder))


def test_no_configuration(folder: Path, refusal: Refusal) -> None:
    (folder / "adapter_config.json").unlink()
    assert "no readable adapter_config.json" in str(refusal(folder))


def test_a_configuration_that_is_no_json(folder: Path, refusal: Refusal) -> None:
    (folder / "adapter_config.json").write_text("{")
    assert "adapter_config.json is not JSON" in str(refusal(folder))


def test_a_module_that_the_base_lacks(folder: Path, refusal: Refusal) -> None:
    def rename(weights: dict[str, Any]) -> None:
        weights |= {NAME.format(which).replace("q_proj", "z_proj"): weights.pop(NAME.format(which)) for which in "AB"}

    change_weights(folder, rename)
    configure(folder, target_modules=["q_proj", "z_proj", "lm_head"])
    assert "changes model.layers.0.self_attn.z_proj, and this base has no such linear layer" in str(refusal(folder))


def test_a_weight_of_another_kind(folder: Path, refusal: Refusal) -> None:
    change_weights(folder, lambda w: w.update({"base_model.model.model.norm.weight": w[NAME.format("A")][0] * 1}))
    assert "holds base_model.model.model.norm.weight, which adapter_config.json does not" in str(refusal(folder))


def test_another_shape(folder: Path, refusal: Refusal) -> None:
    change_weights(folder, lambda w: w.update({NAME.format("B"): w[NAME.format("B")][:64].clone()}))
    assert "model.layers.0.self_attn.q_proj is 64 by 128, but in this base it is 128 by 128" in str(refusal(folder))


def test_half_a_pair(folder: Path, refusal: Refusal) -> None:
    change_weights(folder, lambda w: w.pop(NAME.format("B")))
    assert "model.layers.0.self_attn.q_proj lacks its lora_B" in str(refusal(folder))


def test_a_rank_other_than_configured(folder: Path, refusal: Refusal) -> None:
    configure(folder, r=8)
    assert "has rank 4, but adapter_config.json gives it rank 8" in str(refusal(folder))


COPY = "base_model.model.lm_head.base_layer.weight"


def test_a_vocabulary_that_grew(folder: Path, refusal: Refusal, engine: Engine) -> None:
    import torch

    def grow(weights: dict[str, Any]) -> None:
        weights[COPY] = torch.cat([weights[COPY], weights[COPY][:8]])
        name = "base_model.model.lm_head.lora_B.weight"
        weights[name] = torch.cat([weights[name], weights[name][:8]])

    change_weights(folder, grow)
    assert "tokens, and this base has" in str(refusal(folder))
    assert "whose vocabulary grew or shrank does not fit" in str(refusal(folder))
    assert engine.resident == []
    assert engine._adapters._bank.used == 0


@pytest.mark.parametrize("name", ["lm_head", "model.embed_tokens"])
def test_a_copy_of_the_base_that_was_trained(
    name: str,
    tiny_llama: Path,
    tiny_qwen2: Path,
    random_lora: Callable[..., Path],
    tmp_path: Path,
    make_engine: Callable[..., Engine],
    answer: Callable[..., Any],
    reference: Callable[..., list[list[int]]],
) -> None:
    """PEFT loads it over the base's, and so over both ends where these are tied."""
    prompt = tuple(range(5, 25))
    for base in (tiny_llama, tiny_qwen2):
        folder = random_lora(base, tmp_path / base.name, targets=(name.rpartition(".")[2], "q_proj"))
        copy = f"base_model.model.{name}.base_layer.weight"
        change_weights(folder, lambda w, copy=copy: w.update({copy: w[copy].flip(1).contiguous()}))
        outputs = answer(
            make_engine(base, compute_dtype="float32"), Request("one", prompt, str(folder), Sampling(max_tokens=16))
        )["one"]
        tokens = [token for output in outputs for token in output.token_ids]
        assert [tokens] == reference(base, folder, [prompt], 16, "float32")


def test_all_parts_count_towards_the_size(
    tiny_llama: Path, random_lora: Callable[..., Path], tmp_path: Path, engine: Engine, answer: Callable[..., Any]
) -> None:
    saved = ["norm", "lm_head"]  # and every layer's two norms, as PEFT compares ends of names
    folder = random_lora(
        tiny_llama, tmp_path / "x", targets=("q_proj", "embed_tokens"), use_dora=True, modules_to_save=saved
    )
    answer(engine, Request("one", (5, 6), str(folder), Sampling(max_tokens=1)))
    vocabulary, width, rank = engine._vocabulary, 128, 8
    pairs = 2 * (2 * rank * width * 2 + 4 * width)
    embedding = 4 * (rank * (vocabulary + width) + width)
    assert engine._adapters._bank.size(str(folder)) == pairs + embedding + 2 * (5 * width + vocabulary * width)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shifted", [0, 1])
def test_numbers_of_any_dtype_and_place_are_read_as_they_are(tmp_path: Path, dtype: str, shifted: int) -> None:
    """Other tools' headers may leave tensors at odd places."""
    import torch
    from safetensors.torch import save_file

    from swapmeet_registry.safetensors_file import read_header
    from swapmeet_serving.tensor_file import TensorFile

    weights = {name: torch.randn(3, 5).to(getattr(torch, dtype)) for name in "abc"}
    path = tmp_path / "weights.safetensors"
    save_file(weights, path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip(b" ") + b" " * (8 + shifted)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    found = read_header(path)
    read = TensorFile(path, found.tensors, found.data_start)
    assert all(torch.equal(read(name), weight) for name, weight in weights.items())


def test_adapters_in_half_precision_are_computed_as_their_numbers_say(
    folder: Path, tiny_llama: Path, make_engine: Callable[..., Engine], answer: Callable[..., Any], tmp_path: Path
) -> None:
    import shutil

    import torch

    tokens = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        own = shutil.copytree(folder, tmp_path / str(dtype))
        change_weights(own, partial(coarsen, dtype))
        request = Request("one", (5, 6, 7), str(own), Sampling(max_tokens=8, ignore_eos=True))
        outputs = answer(make_engine(tiny_llama, compute_dtype="float32"), request)["one"]
        tokens[dtype] = [token for each in outputs for token in each.token_ids]
    assert tokens[torch.bfloat16] == tokens[torch.float16] == tokens[torch.float32]
