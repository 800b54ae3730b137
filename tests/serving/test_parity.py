"""Greedy tokens in mixed batches are those of transformers and PEFT, request by request."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_serving import Engine, Output, Request, Sampling

ADAPTERS: dict[str, dict[str, Any]] = {
    "rank-4": {"rank": 4},
    "attention": {"rank": 8, "targets": ("q_proj", "v_proj")},
    "rslora": {"rank": 16, "use_rslora": True, "lora_alpha": 7},
    "rank-64": {"rank": 64, "lora_alpha": 48},
    "patterns": {"rank": 8, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"layers.1.mlp.down_proj": 11}},
    "head": {"rank": 8, "targets": ("lm_head", "up_proj")},
}
NEW = 24
Outputs = dict[str, list[Output]]


@pytest.fixture(scope="module")
def adapters(
    random_lora: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, Path | None]]:
    def make(base: Path) -> dict[str, Path | None]:
        folder = tmp_path_factory.mktemp("adapters")
        made = {
            name: random_lora(base, folder / name, seed=seed, **shape)
            for seed, (name, shape) in enumerate(ADAPTERS.items())
        }
        return {"base": None, **made}

    return make


def prompts_of(lengths: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [tuple((7 * n + 13 * n * n + length) % 370 + 5 for n in range(length)) for length in lengths]


def tokens_of(outputs: list[Output]) -> list[int]:
    assert outputs[-1].error is None, outputs[-1].error
    assert outputs[-1].finish_reason in ("stop", "length")
    return [token for output in outputs for token in output.token_ids]


@pytest.mark.parametrize(("exact", "dtype"), [(True, "float32"), (True, "bfloat16"), (False, "float32")])
@pytest.mark.parametrize("base_name", ["tiny_llama", "tiny_qwen2"])
def test_mixed_batches_equal_peft(
    base_name: str,
    exact: bool,
    dtype: str,
    request: pytest.FixtureRequest,
    adapters: Callable[..., dict[str, Path | None]],
    make_engine: Callable[..., Engine],
    reference: Callable[..., list[list[int]]],
) -> None:
    """Requests join and leave at different times: more of them than places, of different lengths."""
    base: Path = request.getfixturevalue(base_name)
    prompts = prompts_of((1, 2, 17, 60))
    engine = make_engine(base, exact=exact, compute_dtype=dtype, max_batch=9, max_step_tokens=80)
    made = adapters(base)
    outputs: Outputs = {}
    for number, prompt in enumerate(prompts):
        for name, folder in made.items():
            sampling = Sampling(max_tokens=NEW - number)
            engine.submit(Request(f"{name}:{number}", prompt, str(folder) if folder else None, sampling))
            for output in engine.step():
                outputs.setdefault(output.request_id, []).append(output)
    while engine.busy:
        engine.wait(10)
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    for name, folder in made.items():
        expected = reference(base, folder, prompts, NEW, dtype)
        for number, tokens in enumerate(expected):
            assert tokens_of(outputs[f"{name}:{number}"]) == tokens[: NEW - number], (name, number)


def test_adapters_make_a_difference(
    tiny_llama: Path,
    adapters: Callable[..., dict[str, Path | None]],
    make_engine: Callable[..., Engine],
    answer: Callable[..., Outputs],
) -> None:
    """Otherwise the comparison above would prove nothing."""
    (prompt,) = prompts_of((17,))
    requests = [
        Request(name, prompt, str(folder) if folder else None, Sampling(max_tokens=NEW, ignore_eos=True))
        for name, folder in adapters(tiny_llama).items()
    ]
    outputs = answer(make_engine(tiny_llama), *requests)
    assert len({tuple(tokens_of(each)) for each in outputs.values()}) == len(requests)


@pytest.fixture(scope="module")
def real_adapters(
    smollm2: Path, random_lora: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path | None]:
    folder = tmp_path_factory.mktemp("real")
    names = ("rank-4", "attention", "rslora")
    made = {name: random_lora(smollm2, folder / name, seed=seed, **ADAPTERS[name]) for seed, name in enumerate(names)}
    return {"base": None, **made}


@pytest.mark.slow
@pytest.mark.parametrize(("exact", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_the_real_base(
    exact: bool,
    dtype: str,
    smollm2: Path,
    real_adapters: dict[str, Path | None],
    make_engine: Callable[..., Engine],
    answer: Callable[..., Outputs],
    reference: Callable[..., list[list[int]]],
    reference_model: Callable[..., Any],
    likeliest: Callable[..., list[int]],
) -> None:
    """Bit for bit where that is promised; elsewhere the tokens are those that one pass over them finds likeliest."""
    made = real_adapters
    engine = make_engine(smollm2, exact=exact, compute_dtype=dtype, kv_bytes=64 << 20)
    texts = ("What is the capital of France?", "Write a poem about the sea and the people who live by it.")
    prompts = [
        tuple(
            engine.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            )
        )
        for text in texts
    ]
    requests = [
        Request(f"{name}:{number}", prompt, str(folder) if folder else None, Sampling(max_tokens=32))
        for number, prompt in enumerate(prompts)
        for name, folder in made.items()
    ]
    outputs = answer(engine, *requests)
    for name, folder in made.items():
        found = [tokens_of(outputs[f"{name}:{number}"]) for number in range(len(prompts))]
        if exact:
            assert found == reference(smollm2, folder, prompts, 32, dtype), name
            continue
        model = reference_model(smollm2, folder, dtype)
        for prompt, tokens in zip(prompts, found, strict=True):
            assert likeliest(model, prompt, tokens) == tokens, name
            ends = [token in engine._live._eos for token in tokens]
            assert not any(ends[:-1]), name
            assert ends[-1] or len(tokens) == 32, name
