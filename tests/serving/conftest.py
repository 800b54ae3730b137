"""Engines over tiny bases, and the tokens that transformers and PEFT give for the same requests."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry.fingerprint import Quantization
from swapmeet_serving import Engine, Output, Request

STEPS = 5_000

COMMON = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""A tiny model of any architecture."""


@pytest.fixture
def make_engine() -> Iterator[Callable[..., Engine]]:
    """`make_engine(base, **settings)`; an adapter's identity is its folder unless `fetch` says otherwise."""
    engines: list[Engine] = []

    def make(base: Path, *, compute_dtype: str = "bfloat16", **settings: Any) -> Engine:
        quantization = Quantization(compute_dtype=compute_dtype)
        engine = Engine(
            base, quantization=quantization, **({"fetch": Path, "kv_bytes": 4 << 20, "threads": 1} | settings)
        )
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def answer() -> Callable[..., dict[str, list[Output]]]:
    """`answer(engine, *requests)`: submit, step until all have ended, and give each one's outputs."""

    def run(engine: Engine, *requests: Request) -> dict[str, list[Output]]:
        for request in requests:
            engine.submit(request)
        outputs: dict[str, list[Output]] = {}
        for _ in range(STEPS):
            if not engine.busy:
                return outputs
            engine.wait(10)
            for output in engine.step():
                outputs.setdefault(output.request_id, []).append(output)
        raise AssertionError(f"still busy after {STEPS} steps")

    return run


@pytest.fixture(scope="session")
def greedy() -> Callable[..., list[list[int]]]:
    """`greedy(model, prompts, new_tokens)`: what a transformers model's `generate` adds to each prompt, one by one."""

    def run(model: Any, prompts: list[tuple[int, ...]], new: int) -> list[list[int]]:
        import torch

        found = []
        for prompt in prompts:
            ids = torch.tensor([prompt])
            with torch.inference_mode():
                output = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    max_new_tokens=new,
                    pad_token_id=0,
                )
            found.append(output[0, len(prompt) :].tolist())
        return found

    return run


@pytest.fixture(scope="session")
def likeliest() -> Callable[..., list[int]]:
    """`likeliest(model, prompt, tokens)`: the likeliest next token after the prompt, and after each token but the last.

    They are the tokens themselves if `generate` would give these, and otherwise not; one pass instead of many.
    """

    def run(model: Any, prompt: tuple[int, ...], tokens: list[int]) -> list[int]:
        import torch

        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0]
        found: list[int] = logits[len(prompt) - 1 : -1].argmax(-1).tolist()
        return found

    return run


@pytest.fixture(scope="session")
def reference_model() -> Callable[..., Any]:
    """`reference_model(base, adapter, dtype)`: the base as transformers computes it, with an adapter as PEFT does."""

    def load(base: Path, adapter: Path | None, dtype: str = "bfloat16") -> Any:
        from peft import PeftModel

        from swapmeet_registry.bases.nf4 import load_nf4

        model = load_nf4(base, quantization=Quantization(compute_dtype=dtype))
        if adapter:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT's remarks on tied heads and Hub look-ups
                model = PeftModel.from_pretrained(model, adapter).eval()
        return model

    return load


@pytest.fixture(scope="session")
def reference(
    greedy: Callable[..., list[list[int]]], reference_model: Callable[..., Any]
) -> Callable[..., list[list[int]]]:
    """`reference(base, adapter, prompts, new_tokens, dtype)`: greedy tokens of `generate`, one by one."""

    def run(
        base: Path, adapter: Path | None, prompts: list[tuple[int, ...]], new: int, dtype: str = "bfloat16"
    ) -> list[list[int]]:
        return greedy(reference_model(base, adapter, dtype), prompts, new)

    return run


@pytest.fixture
def make_base(tiny_llama: Path, tmp_path: Path) -> Callable[..., Path]:
    """A tiny random model of any architecture, with the tiny Llama's tokenizer."""

    def make(architecture: str, **settings: Any) -> Path:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        torch.manual_seed(0)
        config = AutoConfig.for_model(architecture, **(COMMON | settings))
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / architecture)
        AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / architecture)
        return tmp_path / architecture

    return make
