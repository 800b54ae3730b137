"""Tokens a second of one mixed batch: this engine against PEFT's `adapter_names`, on the same NF4 base.

    python benchmarks/mixed_batch.py [--requests 16] [--adapters 8] [--tokens 64] [--rounds 3]

Every request asks for its own adapter in turn, greedily, with end-of-text ignored. The sides alternate, round by
round, after one warm-up each, so that a machine whose speed drifts treats them alike.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from swapmeet_registry.bases import BaseLibrary, load_nf4
from swapmeet_serving import Engine, Request, Sampling

HOME = Path(__file__).parent.parent / ".cache" / "swapmeet"
Round = Callable[[], float]


def main() -> None:
    """Measure, print a table, end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("requests", 16), ("adapters", 8), ("tokens", 64), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    base = BaseLibrary(HOME, print).find("smollm2-135m").path
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompts = [f"Tell me a short story number {i} about a fox near the sea." for i in range(options.requests)]
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    with tempfile.TemporaryDirectory() as folder:
        adapters = [random_adapter(base, Path(folder) / str(i), seed=i) for i in range(options.adapters)]
        sides = {
            "engine, adapters": engine_round(base, adapters, ids, options.tokens),
            "engine, no adapter": engine_round(base, [], ids, options.tokens),
            "peft, adapters": peft_round(base, adapters, ids, options.tokens, tokenizer.pad_token_id),
        }
        rates = measure(sides, options.requests * options.tokens, options.rounds)
    report(rates, vars(options))


def measure(sides: dict[str, Round], tokens: int, rounds: int) -> dict[str, list[float]]:
    """Tokens a second of each side, round by round."""
    for side in sides.values():
        side()
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            rates[name].append(tokens / side())
    return rates


def report(rates: dict[str, list[float]], settings: dict[str, int]) -> None:
    """A table for people and one line for programs."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"\n{'side':22} {'tokens/s':>9}  {'min':>7} {'max':>7}")
    for name, values in rates.items():
        print(f"{name:22} {medians[name]:9.1f}  {min(values):7.1f} {max(values):7.1f}")
    figures = {name: round(value, 1) for name, value in medians.items()}
    ratio = round(medians["engine, adapters"] / medians["peft, adapters"], 2)
    print(json.dumps({"benchmark": "mixed_batch", **settings, "tokens_per_second": figures, "engine_over_peft": ratio}))


def engine_round(base: Path, adapters: list[Path], prompts: list[list[int]], tokens: int) -> Round:
    """One round of this engine: seconds from the first submit to the last token."""
    engine = Engine(base, fetch=lambda identity: adapters[int(identity)])

    def run() -> float:
        start = time.perf_counter()
        for index, prompt in enumerate(prompts):
            adapter = str(index % len(adapters)) if adapters else None
            sampling = Sampling(max_tokens=tokens, ignore_eos=True)
            engine.submit(Request(f"{start}-{index}", tuple(prompt), adapter, sampling))
        while engine.busy:
            engine.wait()
            for output in engine.step():
                if output.error:
                    raise output.error
        return time.perf_counter() - start

    return run


def peft_round(base: Path, adapters: list[Path], prompts: list[list[int]], tokens: int, pad: int) -> Round:
    """One round of PEFT's mixed batch, padded on the left."""
    model = peft.PeftModel.from_pretrained(load_nf4(base), adapters[0], adapter_name="0")
    for index, folder in enumerate(adapters[1:], start=1):
        model.load_adapter(folder, adapter_name=str(index))
    model.eval()
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    names = [str(index % len(adapters)) for index in range(len(prompts))]

    def run() -> float:
        start = time.perf_counter()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.generate(
                input_ids=ids,
                attention_mask=mask,
                adapter_names=names,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                do_sample=False,
            )
        return time.perf_counter() - start

    return run


def random_adapter(base: Path, folder: Path, seed: int, rank: int = 16) -> Path:
    """A rank-16 adapter on all linear layers, random: speed does not depend on values."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
