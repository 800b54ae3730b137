"""Answers stay those of transformers and PEFT when everything is short: tokens a step, pages, room for adapters.

Prompts come in pieces, prefixes are found in the cache, sequences are put back and computed anew, adapters leave and
come back, and mixes of adapters run beside plain ones; request by request the tokens are `generate`'s.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry.fingerprint import Quantization
from swapmeet_serving import Engine, Output, Request, Sampling
from swapmeet_serving.mix import Mix, mix_of

LLAMA_LIKE = ("q_proj", "v_proj", "o_proj", "down_proj")
ALL = (*LLAMA_LIKE, "k_proj", "gate_proj", "up_proj")
NEW = 20
START = tuple(n * n % 300 + 5 for n in range(40))
PROMPTS = [START[:7], (*START, 9), (*START, 8, 7), (*START[:32], 6, 5, 4), tuple(range(200, 260))]
Outputs = dict[str, list[Output]]


@pytest.fixture(scope="module")
def peft_tokens(greedy: Callable[..., list[list[int]]]) -> Callable[..., list[list[int]]]:
    """Greedy tokens of PEFT with several adapters active at once, each times its weight."""

    def run(base: Path, mix: Mix) -> list[list[int]]:
        from peft import PeftModel
        from peft.tuners.lora import LoraLayer

        from swapmeet_registry.bases.nf4 import load_nf4

        model: Any = load_nf4(base, quantization=Quantization(compute_dtype="float32"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's remarks on tied heads and Hub look-ups
            for folder, _ in mix:
                if isinstance(model, PeftModel):
                    model.load_adapter(folder, adapter_name=folder.replace(".", "_"))
                else:
                    model = PeftModel.from_pretrained(model, folder, adapter_name=folder.replace(".", "_"))
        if mix:
            model.base_model.set_adapter([folder.replace(".", "_") for folder, _ in mix])
        for scalings in [each.scaling for each in model.modules() if isinstance(each, LoraLayer)]:
            for folder, weight in mix:
                if folder.replace(".", "_") in scalings:
                    scalings[folder.replace(".", "_")] *= weight
        return greedy(model, PROMPTS, NEW)

    return run


@pytest.mark.parametrize(
    ("architecture", "settings", "targets"),
    [
        ("llama", {"tie_word_embeddings": True}, ALL),
        ("qwen2", {}, ALL),
        ("gemma", {"hidden_activation": "gelu_pytorch_tanh"}, ALL),
        ("gemma3_text", {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}, ALL),
        ("mistral", {"sliding_window": 9}, LLAMA_LIKE),
        ("phi", {}, ("q_proj", "dense", "fc2")),
        ("gpt_neox", {}, ("query_key_value", "dense_4h_to_h")),
    ],
)
def test_answers_under_pressure_are_those_of_peft(
    architecture: str,
    settings: dict[str, Any],
    targets: tuple[str, ...],
    make_base: Callable[..., Path],
    random_lora: Callable[..., Path],
    make_engine: Callable[..., Engine],
    peft_tokens: Callable[..., list[list[int]]],
    tmp_path: Path,
) -> None:
    base = make_base(architecture, **settings)
    one, two, three = (
        str(random_lora(base, tmp_path / f"rank{rank}", rank=rank, targets=targets, seed=rank)) for rank in (4, 8, 3)
    )
    mixes: list[str | Mix | None] = [None, one, two, three, ((one, 0.7), (two, 0.3)), ((three, -0.5), (one, 1.5))]
    probe: Any = make_engine(base, compute_dtype="float32", kv_bytes=4 << 20)
    page = (4 << 20) // probe._scheduler._pages.count
    sizes = [probe._adapters._open(Path(folder), folder).size for folder in (one, two, three)]
    engine = make_engine(
        base,
        compute_dtype="float32",
        kv_bytes=11 * page,
        adapter_bytes=sum(sizes[:2]),
        max_step_tokens=24,
        max_batch=8,
    )
    scheduler: Any = engine._scheduler
    outputs: Outputs = {}
    turns = 0
    while turns < 2 or (scheduler.preemptions == 0 and turns < 6):  # how much meets depends on how long loads take
        for number, prompt in enumerate(PROMPTS):
            for index, mix in enumerate(mixes):
                engine.submit(Request(f"{turns}:{index}:{number}", prompt, mix, Sampling(max_tokens=NEW)))
                if turns < 2:
                    collect(engine, outputs)
        while engine.busy and turns > 0:
            engine.wait(10)
            collect(engine, outputs)
        turns += 1
    for index, mix in enumerate(mixes):
        for number, expected in enumerate(peft_tokens(base, mix_of(mix))):
            for turn in range(turns):
                assert tokens_of(outputs[f"{turn}:{index}:{number}"]) == expected, (mix, number, turn)
    assert scheduler.preemptions > 0
    assert len(engine.resident) < 3, "adapters had to leave"
    assert scheduler._pages.free == scheduler._pages.count
    assert scheduler._pages.idle > 0


def collect(engine: Engine, outputs: Outputs) -> None:
    for output in engine.step():
        outputs.setdefault(output.request_id, []).append(output)


def tokens_of(outputs: list[Output]) -> list[int]:
    assert outputs[-1].error is None, outputs[-1].error
    return [token for output in outputs for token in output.token_ids]
