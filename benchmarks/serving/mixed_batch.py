"""Tokens a second of one mixed batch: this engine, PEFT's `adapter_names` on the same NF4 base, and vLLM.

    python benchmarks/serving/mixed_batch.py [--requests 16] [--adapters 8 0] [--grid] [--tokens 64] [--rounds 3]
                                             [--device cpu]

All requests of a cell start at once; request i asks for adapter i modulo their number, greedily, with end-of-text
ignored. Where there are more adapters than requests, the rest is loaded and idle. Adapters have rank 16 on all linear
layers; without adapters, PEFT's side is plain transformers. In every cell the sides take turns, round by round.

vLLM takes part where SWAPMEET_BENCH_VLLM_PYTHON names an interpreter that has it. It computes the base in bfloat16,
because on CPUs it has no NF4, and is started anew for each number of adapters, with as many slots and rank 16.

On a GPU, `of limit` is this engine's share of what memory allows: one pass over the base's weights a step (0.516 bytes
each, two in the output head), at the speed that copies reach there.
"""

import math
import os
import tempfile
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import peft
import torch
from measure import (
    Round,
    Side,
    adapter_bytes,
    bench_base,
    decode,
    linear_layers,
    parser,
    prompts,
    random_adapter,
    report,
    rounded,
    take_turns,
)

from swapmeet_registry.bases import load_nf4, module_shapes
from swapmeet_serving import Engine

VLLM = "SWAPMEET_BENCH_VLLM_PYTHON"
GRID_REQUESTS, GRID_ADAPTERS = [1, 4, 16, 32], [0, 1, 8, 32]
COLUMNS = ("engine", "no adapter", "peft", "vllm", "over peft", "over vllm", "tax", "of limit")
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


def main() -> None:
    """Measure cell by cell, print a table, end with one JSON line."""
    options = _options()
    base, most, cells = bench_base().path, max(options.requests), []
    with tempfile.TemporaryDirectory() as folder:
        adapters = [random_adapter(base, Path(folder) / str(i), seed=i) for i in range(max(options.adapters))]
        budget = (len(adapters) + 1) * adapter_bytes(base)
        engine = Engine(
            base, fetch=lambda name: adapters[int(name)], adapter_bytes=budget, max_batch=most, device=options.device
        )
        ids, peer = prompts(engine.tokenizer, most), Peft(base, adapters, options.device)
        fastest = steps_of_memory(base) if options.device != "cpu" else None
        print(f"{'requests':>8} {'adapters':>8}", *(f"{name:>10}" for name in COLUMNS))
        for count in options.adapters:
            with vllm_side(base, adapters[:count], most) as vllm:
                for requests in options.requests:
                    sides = _sides(engine, peer, vllm, ids[:requests], count, options.tokens)
                    seconds = take_turns(sides, options.rounds)
                    cells.append(_cell(requests, count, requests * options.tokens, seconds, fastest))
    report("mixed_batch", tokens=options.tokens, rounds=options.rounds, cells=cells)


def _options() -> Any:
    parse = parser(__doc__)
    parse.add_argument("--requests", type=int, nargs="+", default=[16])
    parse.add_argument("--adapters", type=int, nargs="+", default=[8, 0])
    parse.add_argument("--grid", action="store_true", help=f"{GRID_REQUESTS} requests by {GRID_ADAPTERS} adapters")
    parse.add_argument("--tokens", type=int, default=64)
    parse.add_argument("--rounds", type=int, default=3)
    parse.add_argument("--device", default="cpu")
    options = parse.parse_args()
    if options.grid:
        options.requests, options.adapters = GRID_REQUESTS, GRID_ADAPTERS
    return options


def _sides(
    engine: Engine, peer: "Peft", vllm: Side | None, ids: list[list[int]], count: int, tokens: int
) -> dict[str, Round]:
    names = [str(index) for index in range(count)]
    sides: dict[str, Round] = {"engine": lambda: decode(engine, ids, names, tokens)}
    if count:
        sides["no adapter"] = lambda: decode(engine, ids, [], tokens)
    sides["peft"] = lambda: peer.generate(ids, names, tokens)
    if vllm:
        sides["vllm"] = lambda: float(vllm.ask(prompts=ids, tokens=tokens)["seconds"])
    return sides


def _cell(
    requests: int, adapters: int, tokens: int, seconds: dict[str, list[float]], fastest: float | None
) -> dict[str, Any]:
    """One row of the table, printed: tokens/s of each side, ratios, and what part of the speed adapters cost."""
    rates = rounded({name: [tokens / each for each in values] for name, values in seconds.items()}, 1)
    figures = rates | {"over peft": round(rates["engine"] / rates["peft"], 2)}
    if "vllm" in rates:
        figures["over vllm"] = round(rates["engine"] / rates["vllm"], 2)
    if "no adapter" in rates:
        figures["tax"] = round(1 - rates["engine"] / rates["no adapter"], 3)
    if fastest:
        figures["of limit"] = round(rates["engine"] / requests / fastest, 3)
    print(f"{requests:>8} {adapters:>8}", *(f"{figures.get(name, '-'):>10}" for name in COLUMNS), flush=True)
    return {"requests": requests, "adapters": adapters, **{name.replace(" ", "_"): n for name, n in figures.items()}}


def vllm_side(base: Path, adapters: list[Path], requests: int) -> AbstractContextManager[Side | None]:
    """vLLM in a process of its own, if there is one."""
    python = os.environ.get(VLLM)
    script = Path(__file__).with_name("vllm_side.py")
    return Side(python, script, str(requests), base, *adapters) if python else nullcontext()


def steps_of_memory(base: Path) -> float:
    """Steps a second if reading the weights were all, at the speed of a copy on the device."""
    linear = sum(math.prod(shape) for shape in linear_layers(base).values())
    shapes = module_shapes(base)
    head = math.prod(shapes.get("lm_head") or shapes["model.embed_tokens"])
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target, times = torch.empty_like(source), []
    for _ in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return 2 * source.numel() / min(times) / (NF4_BYTES * linear + 2 * head)


class Peft:
    """PEFT's mixed batch, padded on the left."""

    def __init__(self, base: Path, adapters: list[Path], device: str) -> None:
        self._model, self._device = load_nf4(base, device=device), device
        for index, folder in enumerate(adapters):
            if index:
                self._model.load_adapter(folder, adapter_name=str(index))
            else:
                self._model = peft.PeftModel.from_pretrained(self._model, folder, adapter_name="0")
        self._model.eval()

    def generate(self, ids: list[list[int]], names: list[str], tokens: int) -> float:
        """Seconds for one batch, whose requests take adapters in turn; without names, the base's."""
        longest = max(map(len, ids))
        padding = [longest - len(prompt) for prompt in ids]
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor([[0] * left + prompt for left, prompt in zip(padding, ids, strict=True)]),
            "attention_mask": torch.tensor([[0] * left + [1] * (longest - left) for left in padding]),
        }
        inputs = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        if names:
            inputs["adapter_names"] = [names[index % len(names)] for index in range(len(ids))]
        bare = not names and isinstance(self._model, peft.PeftModel)
        start = time.perf_counter()
        with torch.no_grad(), warnings.catch_warnings(), self._model.disable_adapter() if bare else nullcontext():
            warnings.simplefilter("ignore")
            self._model.generate(**inputs, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False)
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
