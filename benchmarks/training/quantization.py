"""QLoRA's claims about 4-bit formats, on the weights of the real base: error, perplexity, and double quantization.

    python benchmarks/training/quantization.py [--tokens 4096]

Each format rounds the linear layers (as training and serving do: all but the output head) in blocks of 64; the rest
stays as it is. Perplexity is that of this repository's decisions, which are younger than the base, in windows of 512
tokens, computed in fp32. The paper's figures (arXiv 2305.14314) are of other models and of Common Crawl, so what can
be compared is the order, and how much is lost. Ends with one JSON line.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from bitsandbytes import functional
from torch.nn.functional import cross_entropy

ROOT = Path(__file__).parents[2]
BLOCK, WINDOW = 64, 512
TEXTS = [
    "0001-fingerprint.md", "0002-trainer.md", "0003-train-in-the-caller.md", "0004-admin-key.md", "0005-cpu-kernels.md",
    "0006-metrics-and-request-log.md", "0007-structured-output.md", "0008-routing-and-the-gateway.md",
    "0009-adapter-kinds.md", "0010-scheduling.md", "0011-templates-of-strangers.md",
]  # fmt: skip
PAPER = {"int4": 34.34, "fp4": 31.07, "nf4": None, "nf4, double": 27.41}
"""Mean perplexity of 125M to 13B models on Common Crawl, table 2; its fp4 is E2M1."""

Rounded = tuple[torch.Tensor, float]
"""A weight after quantization and back, and the bits that each of its elements took."""


def four_bits(weight: torch.Tensor, kind: str, double: bool) -> Rounded:
    """bitsandbytes' NF4 or FP4."""
    packed, state = functional.quantize_4bit(weight, blocksize=BLOCK, compress_statistics=double, quant_type=kind)
    constants = [state.absmax, *([state.state2.absmax, state.offset] if state.nested else [])]
    size = sum(tensor.numel() * tensor.element_size() for tensor in (packed, *constants))
    return functional.dequantize_4bit(packed, state), 8 * size / weight.numel()


def integers(weight: torch.Tensor) -> Rounded:
    """Int4: each block scaled so that its largest element is 7, and rounded."""
    blocks = weight.reshape(-1, BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 7
    return ((blocks / scale).round() * scale).reshape(weight.shape), 4 + 32 / BLOCK


FORMATS: dict[str, Callable[[torch.Tensor], Rounded]] = {
    "nf4, double": lambda weight: four_bits(weight, "nf4", double=True),
    "nf4": lambda weight: four_bits(weight, "nf4", double=False),
    "fp4": lambda weight: four_bits(weight, "fp4", double=False),
    "int4": integers,
}


def linears(model: Any) -> Iterator[torch.nn.Linear]:
    """What is quantized."""
    head = model.get_output_embeddings()
    return (module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head)


def apply(model: Any, weights: list[torch.Tensor], rounded: Callable[[torch.Tensor], Rounded]) -> tuple[float, float]:
    """Round a model's weights; the relative error of all of them together, and bits a parameter."""
    wrong = whole = bits = elements = 0.0
    for module, weight in zip(linears(model), weights, strict=True):
        values, width = rounded(weight)
        wrong += float((values.double() - weight.double()).square().sum())
        whole += float(weight.double().square().sum())
        bits += width * weight.numel()
        elements += weight.numel()
        module.weight.data.copy_(values)
    return math.sqrt(wrong / whole), bits / elements


def perplexity(model: Any, windows: torch.Tensor) -> float:
    """exp of the mean loss over all tokens of the windows (count, WINDOW) but their first."""
    total = 0.0
    with torch.inference_mode():
        for window in windows.split(2):
            logits = model(window).logits[:, :-1].flatten(0, 1).float()
            total += float(cross_entropy(logits, window[:, 1:].flatten(), reduction="sum"))
    return math.exp(total / (windows.numel() - len(windows)))


def text_windows(base: Path, tokens: int) -> torch.Tensor:
    """The text in windows, at most so many tokens of it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    text = "\n\n".join((ROOT / "docs" / "decisions" / name).read_text() for name in TEXTS)
    ids = tokenizer(text, verbose=False)["input_ids"]
    count = min(tokens, len(ids)) // WINDOW
    return torch.tensor(ids[: count * WINDOW]).reshape(count, WINDOW)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    options = parser.parse_args()
    from transformers import AutoModelForCausalLM

    from swapmeet_registry.bases import BaseLibrary

    base = BaseLibrary(ROOT / ".cache" / "swapmeet").find("smollm2-135m").path
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True).eval()
    weights = [module.weight.data.clone() for module in linears(model)]
    windows = text_windows(base, options.tokens)
    exact = perplexity(model, windows)
    print(f"{windows.numel()} tokens, perplexity of the base {exact:.3f}", flush=True)
    print(f"{'format':14}{'bits':>8}{'error':>10}{'perplexity':>12}{'lost':>9}{'paper':>9}")
    results: dict[str, Any] = {}
    for name, rounded in FORMATS.items():
        error, bits = apply(model, weights, rounded)
        found = perplexity(model, windows)
        lost = found / exact - 1
        results[name] = {"bits": round(bits, 4), "error": round(error, 5), "perplexity": round(found, 3), "lost": lost}
        paper = f"{PAPER[name]:9.2f}" if PAPER[name] else ""
        print(f"{name:14}{bits:8.3f}{error:10.5f}{found:12.3f}{100 * lost:8.2f}%{paper}", flush=True)
    single, double = results["nf4"], results["nf4, double"]
    saved = single["bits"] - double["bits"]
    print(f"double quantization saves {saved:.3f} bits a parameter (paper: {4.5 - 4.127:.3f}), "
          f"and moves perplexity by {100 * (double['perplexity'] / single['perplexity'] - 1):+.3f} %")  # fmt: skip
    print(json.dumps({
        "benchmark": "quantization",
        "tokens": windows.numel(),
        "perplexity": round(exact, 3),
        "formats": {name: {**one, "lost": round(one["lost"], 4)} for name, one in results.items()},
        "double_saves_bits": round(saved, 4),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
