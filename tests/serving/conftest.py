"""Engines over tiny bases, and the tokens that transformers and PEFT give for the same requests."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry.fingerprint import Quantization
from swapmeet_serving import Engine, Output, Request

STEPS = 5_000


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
def reference() -> Callable[..., list[list[int]]]:
    """`reference(base, adapter, prompts, new_tokens, dtype)`: greedy tokens of `generate`, one by one."""

    def run(
        base: Path, adapter: Path | None, prompts: list[tuple[int, ...]], new: int, dtype: str = "bfloat16"
    ) -> list[list[int]]:
        import torch
        from peft import PeftModel

        from swapmeet_registry.bases.nf4 import load_nf4

        model = load_nf4(base, quantization=Quantization(compute_dtype=dtype))
        if adapter:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT's remarks on tied heads and Hub look-ups
                model = PeftModel.from_pretrained(model, adapter).eval()
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
