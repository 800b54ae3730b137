"""A base with the shape of Llama 3.1 8B and random weights: speed does not depend on values.

    python benchmarks/serving/random_base.py FOLDER [--layers 32]
    SWAPMEET_BENCH_BASE=FOLDER python benchmarks/serving/mixed_batch.py --device cuda --requests 1 8 32 128

The tokenizer is SmolLM2's, whose vocabulary is smaller. Weights are written in files of one layer each, in bfloat16.
"""

import json
import shutil
from pathlib import Path

import torch
from measure import bench_base, parser
from safetensors.torch import save_file

HIDDEN, INNER, HEADS, KV_HEADS, WIDTH, VOCABULARY = 4096, 14336, 32, 8, 128, 128256
LAYER = {
    "input_layernorm": (HIDDEN,),
    "post_attention_layernorm": (HIDDEN,),
    "self_attn.q_proj": (HEADS * WIDTH, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * WIDTH, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * WIDTH, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * WIDTH),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
ENDS = {"model.embed_tokens": (VOCABULARY, HIDDEN), "model.norm": (HIDDEN,), "lm_head": (VOCABULARY, HIDDEN)}


def main() -> None:
    parse = parser(__doc__)
    parse.add_argument("folder", type=Path)
    parse.add_argument("--layers", type=int, default=32)
    options = parse.parse_args()
    make(options.folder, options.layers)


def make(folder: Path, layers: int) -> None:
    """Write the base into a new folder."""
    folder.mkdir(parents=True)
    like = bench_base().path
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (like / name).exists():
            shutil.copy(like / name, folder)
    (folder / "config.json").write_text(json.dumps(config(layers), indent=2))
    random, weight_map = torch.Generator().manual_seed(0), {}
    parts = [{f"model.layers.{n}.{name}": shape for name, shape in LAYER.items()} for n in range(layers)]
    for number, shapes in enumerate([*parts, ENDS]):
        weights = {f"{name}.weight": values(shape, random) for name, shape in shapes.items()}
        file = f"model-{number:05}.safetensors"
        save_file(weights, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(weights, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def values(shape: tuple[int, ...], random: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=random)


def config(layers: int) -> dict[str, object]:
    """As transformers reads it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": WIDTH,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


if __name__ == "__main__":
    main()
