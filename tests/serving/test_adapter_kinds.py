"""Every kind of adapter, alone and beside all others in one batch, gives the tokens that PEFT gives."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_serving import Engine, Output, Request, Sampling

sys.path.append(str(Path(__file__).parents[1]))

ENDS = ("embed_tokens", "lm_head")
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"rank": 4},
    "dora": {"rank": 8, "use_dora": True},
    "dora rslora": {"rank": 4, "use_dora": True, "use_rslora": True, "lora_alpha": 7, "targets": ("q_proj", "up_proj")},
    "lora_bias": {"rank": 8, "lora_bias": True, "lora_alpha": 7},
    "embedding": {"rank": 8, "targets": ("embed_tokens", "v_proj")},
    "head": {"rank": 8, "targets": ("lm_head", "up_proj")},
    "both ends": {"rank": 3, "targets": ("q_proj", *ENDS), "lora_alpha": 7},
    "dora ends": {"rank": 8, "use_dora": True, "targets": ("q_proj", *ENDS)},
    "saved head": {"rank": 8, "modules_to_save": ["lm_head"]},
    "saved embedding": {"rank": 8, "modules_to_save": ["embed_tokens"], "targets": ("q_proj",)},
    "saved norms": {"rank": 8, "modules_to_save": ["input_layernorm", "norm"], "targets": ("q_proj",)},
    "saved all": {"rank": 8, "use_dora": True, "modules_to_save": ["norm", *ENDS], "targets": ("down_proj",)},
    "tokens": {"rank": 8, "trainable_token_indices": [300, 7, 19, 21, 150], "targets": ("q_proj",)},
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
    random_lora: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Made]]:
    """A base, and an adapter of every kind on it."""
    from conftest import make_tiny  # type: ignore[import-not-found]

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
