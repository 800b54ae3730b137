"""Which bases are served: any whose attention the engine computes, and no other, by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_serving import Engine, Request, Sampling
from swapmeet_serving.errors import BaseUnsupported

LLAMA_LIKE = ("q_proj", "v_proj", "o_proj", "down_proj")


@pytest.mark.parametrize(("exact", "dtype"), [(True, "bfloat16"), (False, "float32")])
@pytest.mark.parametrize(
    ("architecture", "settings", "targets"),
    [
        ("mistral", {"sliding_window": 9}, LLAMA_LIKE),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}, LLAMA_LIKE),
        ("qwen3", {}, LLAMA_LIKE),
        ("gemma3_text", {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}, LLAMA_LIKE),
        ("gpt_neox", {}, ("query_key_value", "dense_4h_to_h")),
        ("phi", {}, ("q_proj", "dense", "fc2")),
        ("opt", {"word_embed_proj_dim": 128, "ffn_dim": 256}, ("q_proj", "fc1", "fc2")),
        # a layer of its head comes after the choice of the rows whose logits are wanted
        ("roberta", {"is_decoder": True, "num_key_value_heads": 4}, ("query", "lm_head.dense")),
        ("granite", {"logits_scaling": 2.0, "attention_multiplier": 0.3}, LLAMA_LIKE),
    ],
)
def test_other_architectures_equal_transformers(
    architecture: str,
    settings: dict[str, Any],
    targets: tuple[str, ...],
    exact: bool,
    dtype: str,
    make_base: Callable[..., Path],
    random_lora: Callable[..., Path],
    make_engine: Callable[..., Engine],
    answer: Callable[..., Any],
    reference: Callable[..., list[list[int]]],
    tmp_path: Path,
) -> None:
    base = make_base(architecture, **settings)
    adapter = random_lora(base, tmp_path / "adapter", rank=4, targets=targets)
    prompts = [tuple(range(5, 5 + length)) for length in (3, 8, 25)]
    requests = [
        Request(f"{folder}:{number}", prompt, str(folder) if folder else None, Sampling(max_tokens=16))
        for number, prompt in enumerate(prompts)
        for folder in (None, adapter)
    ]
    outputs = answer(make_engine(base, exact=exact, compute_dtype=dtype), *requests)
    for folder in (None, adapter):
        for number, expected in enumerate(reference(base, folder, prompts, 16, dtype)):
            found = outputs[f"{folder}:{number}"]
            assert found[-1].error is None
            assert [token for output in found for token in output.token_ids] == expected


@pytest.mark.parametrize(
    ("architecture", "settings", "reason"),
    [
        ("gemma2", {}, "the attention setting softcap"),
        ("gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 1}, "the attention setting s_aux"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic rotary"),
        ("llama4_text", {"attention_chunk_size": 8, "num_local_experts": 2}, "chunked attention"),
        ("lfm2", {"full_attn_idxs": [1]}, "layers of type conv"),
        ("bloom", {"n_layer": 2, "n_head": 4}, "attention"),
    ],
)
def test_what_is_not_computed_is_refused(
    architecture: str, settings: dict[str, Any], reason: str, make_base: Callable[..., Path]
) -> None:
    base = make_base(architecture, **settings)
    with pytest.raises(BaseUnsupported, match=f"Models of type {architecture} can not be served.*{reason}"):
        Engine(base, fetch=Path, threads=1)
