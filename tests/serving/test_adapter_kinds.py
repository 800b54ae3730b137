"""Every kind of adapter, alone and beside all others in one batch, gives the tokens that PEFT gives."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_serving import Engine, Output, Request, Sampling

ENDS = ("embed_tokens", "lm_head")
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"rank": 4},
    "dora": {"rank": 8, "use_dora": True},
    "dora rslora": {"rank": 4, "use_dora": True, "use_rslora": True, "lora_alpha": 7, "targets": ("q_proj", "up_proj")},
    "lora_bias": {"rank": 8, "lora_bias": True, "lora_alpha": 7},
    "embedding": {"rank": 8, "targets": ("embed_tokens", "v_proj")},
    "head": {"rank": 8, "lora_alpha": 64, "targets": ("lm_head", "up_proj")},
    "both ends": {"rank": 3, "targets": ("q_proj", *ENDS), "lora_alpha": 7},
    "dora ends": {"rank": 8, "use_dora": True, "targets": ("q_proj", *ENDS)},
    "saved head": {"rank": 8, "modules_to_save": ["lm_head"]},
    "saved embedding": {"rank": 8, "modules_to_save": ["embed_tokens"], "targets": ("q_proj",)},
    "saved norms": {"rank": 8, "modules_to_save": ["input_layernorm", "norm"], "targets": ("q_proj",)},
    "saved all": {"rank": 8, "use_dora": True, "modules_to_save": ["norm", *ENDS], "targets": ("down_proj",)},
    "tokens": {"rank": 8, "trainable_token_indices": [300, *range(5, 290, 4)], "targets": ("q_proj",)},
}
BASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-untied": {"architecture": "llama", "tie_word_embeddings": False},
    "qwen2": {},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "gemma": {"head_dim": 32, "tie_word_embeddings": True},
    "gemma3_text": {"head_dim": 32, "tie_word_embeddings": True, "query_pre_attn_scalar": 32},
}
NEW = 16
Outputs = dict[str, list[Output]]
Made = dict[str, Path | None]


@pytest.fixture(scope="module")
def made(
    random_lora: Callable[..., Path], make_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Made]]:
    """A base, and an adapter of every kind on it."""
    done: dict[str, tuple[Path, Made]] = {}

    def make(name: str) -> tuple[Path, Made]:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            base = make_tiny(folder / "base", **{"architecture": name} | BASES[name])
            kinds = enumerate(KINDS.items())
            adapters = {kind: random_lora(base, folder / kind, seed=seed, **shape) for seed, (kind, shape) in kinds}
            done[name] = base, {"base": None, **adapters}
        return done[name]

    return make


def prompts_of(lengths: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [tuple((7 * n + 13 * n * n + length) % 370 + 5 for n in range(length)) for length in lengths]


def tokens_of(outputs: list[Output]) -> list[int]:
    assert outputs[-1].error is None, outputs[-1].error
    return [token for output in outputs for token in output.token_ids]


def request_of(name: str, prompt: tuple[int, ...], adapter: Any) -> Request:
    return Request(name, prompt, str(adapter) if isinstance(adapter, Path) else adapter, Sampling(max_tokens=NEW))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("base_name", BASES)
def test_all_kinds_in_one_batch_equal_peft(
    base_name: str,
    exact: bool,
    made: Callable[[str], tuple[Path, Made]],
    make_engine: Callable[..., Engine],
    answer: Callable[..., Outputs],
    reference: Callable[..., list[list[int]]],
) -> None:
    base, adapters = made(base_name)
    prompts = prompts_of((3, 21))
    engine = make_engine(base, exact=exact, compute_dtype="float32", max_batch=9, max_step_tokens=80)
    requests = [
        request_of(f"{kind}:{number}", prompt, folder)
        for number, prompt in enumerate(prompts)
        for kind, folder in adapters.items()
    ]
    outputs = answer(engine, *requests)
    for kind, folder in adapters.items():
        for number, tokens in enumerate(reference(base, folder, prompts, NEW, "float32")):
            assert tokens_of(outputs[f"{kind}:{number}"]) == tokens, (kind, number)


def test_every_kind_makes_a_difference(
    made: Callable[[str], tuple[Path, Made]], make_engine: Callable[..., Engine], answer: Callable[..., Outputs]
) -> None:
    """Otherwise the comparison above would prove nothing."""
    base, adapters = made("llama")
    (prompt,) = prompts_of((21,))
    outputs = answer(make_engine(base), *(request_of(kind, prompt, folder) for kind, folder in adapters.items()))
    kinds: dict[tuple[int, ...], str] = {}
    for kind in adapters:
        same = kinds.setdefault(tuple(tokens_of(outputs[kind])), kind)
        assert same == kind


@pytest.mark.parametrize("base_name", ["llama", "qwen2", "gemma3_text"])
def test_exact_in_bfloat16(
    base_name: str,
    made: Callable[[str], tuple[Path, Made]],
    make_engine: Callable[..., Engine],
    answer: Callable[..., Outputs],
    reference: Callable[..., list[list[int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without bitsandbytes' repacking, for which PEFT's DoRA has no eye: it would read the wrong weights."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    base, adapters = made(base_name)
    prompts = prompts_of((9, 30))
    engine = make_engine(base, exact=True)
    requests = [
        request_of(f"{kind}:{number}", prompt, folder)
        for number, prompt in enumerate(prompts)
        for kind, folder in adapters.items()
    ]
    outputs = answer(engine, *requests)
    for kind, folder in adapters.items():
        for number, tokens in enumerate(reference(base, folder, prompts, NEW)):
            assert tokens_of(outputs[f"{kind}:{number}"]) == tokens, (kind, number)


@pytest.mark.parametrize("exact", [True, False])
def test_halves_of_an_adapter_mix_to_the_whole(
    exact: bool,
    made: Callable[[str], tuple[Path, Made]],
    make_engine: Callable[..., Engine],
    answer: Callable[..., Outputs],
) -> None:
    base, adapters = made("llama")
    (prompt,) = prompts_of((21,))
    engine = make_engine(base, exact=exact, compute_dtype="float32", fetch=lambda name: Path(name.removesuffix("#2")))
    kinds = {kind: str(folder) for kind, folder in adapters.items() if folder}
    alone = {kind: request_of(kind, prompt, folder) for kind, folder in kinds.items()}
    mixed = {
        kind: request_of(f"{kind} mixed", prompt, ((folder, 1.5), (f"{folder}#2", -0.5)))
        for kind, folder in kinds.items()
    }
    outputs = answer(engine, *alone.values(), *mixed.values())
    for kind in kinds:
        assert tokens_of(outputs[f"{kind} mixed"]) == tokens_of(outputs[kind]), kind


def test_mixes_of_different_kinds_are_the_same_in_both_kernels(
    made: Callable[[str], tuple[Path, Made]], make_engine: Callable[..., Engine], answer: Callable[..., Outputs]
) -> None:
    base, adapters = made("qwen2")
    (prompt,) = prompts_of((21,))
    folders = [str(folder) for folder in adapters.values() if folder]
    requests = [
        request_of(f"{number}", prompt, ((one, 0.7), (other, 0.4)))
        for number, (one, other) in enumerate(zip(folders, folders[1:] + folders[:1], strict=True))
    ]
    exact, fast = (
        answer(make_engine(base, exact=exact, compute_dtype="float32"), *requests) for exact in (True, False)
    )
    for request in requests:
        assert tokens_of(fast[request.id]) == tokens_of(exact[request.id])
    assert len({tuple(tokens_of(each)) for each in fast.values()}) == len(requests)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.1)])
def test_logits_are_close_to_peft(
    dtype: str,
    tolerance: float,
    made: Callable[[str], tuple[Path, Made]],
    make_engine: Callable[..., Engine],
    answer: Callable[..., Outputs],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In bfloat16, the engine's NF4 weights are repacked where the CPU has AVX512-BF16, and PEFT's are not."""
    base, adapters = made("qwen2")
    (prompt,) = prompts_of((21,))
    engine, seen = make_engine(base, compute_dtype=dtype), []
    run = engine._runner.run
    monkeypatch.setattr(engine._runner, "run", lambda *args: seen.append(run(*args)) or seen[-1])
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    for kind, folder in adapters.items():
        answer(engine, Request(kind, prompt, folder and str(folder), Sampling(max_tokens=1)))
        expected = peft_logits(base, folder, prompt, dtype)
        assert (seen[-1].next[-1] - expected).norm() <= tolerance * expected.norm(), kind


def peft_logits(base: Path, adapter: Path | None, prompt: tuple[int, ...], dtype: str) -> Any:
    """What follows the prompt."""
    import torch
    from peft import PeftModel

    from swapmeet_registry.bases.nf4 import load_nf4
    from swapmeet_registry.fingerprint import Quantization

    model = load_nf4(base, quantization=Quantization(compute_dtype=dtype))
    if adapter:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's remarks on tied heads and Hub look-ups
            model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.inference_mode():
        return model(input_ids=torch.tensor([prompt])).logits[0, -1].float()


def test_the_weight_of_packed_layers() -> None:
    """DoRA's norms need it, and bitsandbytes' own `dequantize_4bit` gives something else."""
    import bitsandbytes as bnb
    import torch

    from swapmeet_serving.dora import served_weight

    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(128, 96, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    layer.load_state_dict({"weight": torch.randn(96, 128)})
    layer = layer.to("cpu").eval()
    unpacked = served_weight(layer)
    with torch.inference_mode():
        seen = layer(torch.eye(128, dtype=torch.bfloat16)).t()
    torch.testing.assert_close(served_weight(layer).bfloat16(), seen)
    torch.testing.assert_close(served_weight(layer), unpacked.float(), rtol=1e-2, atol=1e-2)
