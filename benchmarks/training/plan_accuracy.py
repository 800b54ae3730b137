"""The planned peak memory of a run against every live tensor of the run itself, part by part.

    python benchmarks/training/plan_accuracy.py [--quick]

Runs `swapmeet_training.run` on the CPU: two optimizer steps, an evaluation where there is held-out data, and a
checkpoint, on SmolLM2-135M and (`--quick`: only) on tiny random models. Nothing of a run is left out but the memory
that the process itself takes. Ends with one JSON line.
"""

import argparse
import json
import random
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from live_bytes import LiveBytes
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from swapmeet_registry.fingerprint import Fingerprint
from swapmeet_training import FineTune, qlora, run
from swapmeet_training.plan import BaseShape, Hardware, Planned, RunSettings, lengths_of

ROOT = Path(__file__).parents[2]
HERE = Hardware("CPU, tensors alone", 1 << 40, 1e9, 1e9, kind="cpu", overhead=0)
PARTS = ("base", "adapter", "gradients", "optimizer", "activations", "logits")
WORDS = ("the", "sea", "a", "boat", "and", "its", "red", "sail", "far", "from", "any", "harbour", "with", "letters")


@dataclass(frozen=True)
class Case:
    """A run to plan and to make; `words` are how long its examples are, `held_out` those of an evaluation."""

    base: str
    words: Sequence[int]
    held_out: Sequence[int] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        words = f"{self.words[0]}" if len(set(self.words)) == 1 else f"{min(self.words)} to {max(self.words)}"
        settings = " ".join(f"{name}={value}" for name, value in self.settings.items())
        return f"{self.base}, {words} words, {settings}" + (", evaluated" if self.held_out else "")


def case(base: str, words: Sequence[int], held_out: Sequence[int] = (), **settings: Any) -> Case:
    return Case(base, words, held_out, settings)


RAGGED = (20, 300, 150, 90, 260, 40, 210, 120)
OFF = {"gradient_checkpointing": False}
TINY = (
    case("llama", [60] * 8, batch_size=4),
    case("llama", [60] * 8, batch_size=4, **OFF),
    case("llama", [400] * 4, batch_size=2, **OFF),
    case("llama", RAGGED, batch_size=4, **OFF),
    case("llama", RAGGED, batch_size=4),
    case("llama", [60] * 8, batch_size=2, gradient_accumulation=2, rank=64),
    case("llama", [30] * 8, batch_size=1, rank=256, optimizer="paged_adamw_8bit"),
    case("llama", [30] * 8, batch_size=1, rank=256, optimizer="adamw_torch"),
    case("llama", [60] * 8, batch_size=4, dropout=0.1, **OFF),
    case("llama", [60] * 8, batch_size=4, target_modules=("q_proj", "v_proj"), **OFF),
    case("llama", [20] * 8, [400] * 8, batch_size=4),
    case("qwen2", RAGGED, batch_size=4, **OFF),
    case("qwen3", [60] * 8, batch_size=4, **OFF),
    case("gemma", [60] * 8, batch_size=4, **OFF),
    case("phi3", [60] * 8, batch_size=4, **OFF),
    case("gpt_neox", [60] * 8, batch_size=4, **OFF),
    case("llama", [60] * 8, batch_size=4, dora=True),
    case("llama", RAGGED, batch_size=4, dora=True, **OFF),
    case("qwen2", [60] * 8, batch_size=4, dora=True, rank=64, **OFF),
    case("llama", [60] * 8, batch_size=4, init="pissa"),
    case("llama", [60] * 8, batch_size=4, init="pissa", rank=64, max_steps=4, **OFF),
    case("qwen3", RAGGED, [60] * 8, batch_size=4, init="pissa", **OFF),
    case("llama", RAGGED, batch_size=2, packing=True, max_length=1024),
    case("llama", RAGGED, batch_size=2, packing=True, max_length=1024, **OFF),
    case("llama", [20] * 32, batch_size=2, packing=True, max_length=320, **OFF),
    case("phi3", RAGGED, RAGGED, batch_size=2, packing=True, max_length=1024, **OFF),
    case("gemma", [40] * 8, batch_size=1, packing=True, dora=True, max_length=512, max_steps=4, **OFF),
)
REAL = (
    case("smollm2-135m", [120] * 4, batch_size=2),
    case("smollm2-135m", [300] * 2, batch_size=1),
    case("smollm2-135m", [120] * 4, batch_size=2, **OFF),
    case("smollm2-135m", (60, 280, 150, 220), batch_size=2, rank=64, **OFF),
    case("smollm2-135m", [60] * 4, batch_size=1, gradient_accumulation=2, rank=64, optimizer="adamw_torch"),
    case("smollm2-135m", [20] * 2, [120] * 4, batch_size=1, rank=8, optimizer="paged_adamw_8bit"),
)


@dataclass(frozen=True)
class Compared:
    """A run's peak as planned and as measured, in bytes by part."""

    case: Case
    planned: Mapping[str, int]
    measured: Mapping[str, int]
    moment: str

    @property
    def ratio(self) -> float:
        """Planned over measured."""
        return sum(self.planned.values()) / sum(self.measured.values())


def compare(one: Case, base: Path, folder: Path) -> Compared:
    """Plan a run, and make it."""
    spec = _spec(one, base, folder)
    lengths, held_out = lengths_of(spec)
    shape = BaseShape.of(base)
    planned = Planned(shape, RunSettings.of(spec.model_dump()), lengths, HERE, held_out).memory
    parts = {part: size for part, size in planned.parts.items() if part in PARTS}
    parts["activations"] = parts.get("activations", 0) + planned.parts.get("workspace", 0)
    return Compared(one, parts, measure(spec, shape.vocabulary, folder), planned.moment)


def measure(spec: FineTune, vocabulary: int, folder: Path) -> dict[str, int]:
    """Bytes of all live tensors at a run's peak, by part; what loading the base takes for a moment is left out."""
    with LiveBytes(vocabulary) as live, _parts(live), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(spec, folder / "run")
    return {part: live.parts.get(part, 0) for part in PARTS}


@contextmanager
def _parts(live: LiveBytes) -> Iterator[None]:
    """Tell the tracker what a run makes: base, adapter, gradients and optimizer states."""
    load, attach = qlora.load_base, qlora.attach_lora

    def loaded(*arguments: Any) -> Any:
        with live.making("base"):
            return load(*arguments)

    def attached(*arguments: Any) -> Any:
        with live.making("adapter"):
            model = attach(*arguments)
        for weight in model.parameters():
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(lambda weight: live.see(weight.grad, "gradients"))
        live.forget_peak()
        return model

    steps: list[Any] = []
    hooks = [
        register_optimizer_step_pre_hook(lambda *_: steps.append(live.making("optimizer")) or steps[-1].__enter__()),
        register_optimizer_step_post_hook(lambda *_: steps.pop().__exit__(None, None, None)),
    ]
    with mock.patch.object(qlora, "load_base", loaded), mock.patch.object(qlora, "attach_lora", attached):
        yield
    for hook in hooks:
        hook.remove()


def _spec(one: Case, base: Path, folder: Path) -> FineTune:
    chance = random.Random(0)
    files = {}
    for name, words in (("data", one.words), ("validation", one.held_out)):
        lines = [
            json.dumps({"prompt": "Say:", "completion": " " + " ".join(chance.choices(WORDS, k=k))}) for k in words
        ]
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("\n".join(lines))
    settings = {"max_length": 4096, "max_steps": 2, **one.settings}
    return FineTune(
        name="plan/accuracy",
        base=base,
        base_fingerprint=Fingerprint(name="base", weights="unread", tokenizer="unread"),
        data=files["data"],
        validation=files["validation"] if one.held_out else None,
        **settings,
    )


def base_of(name: str, folder: Path) -> Path:
    """The real base, or a tiny random one of that architecture."""
    if name == "smollm2-135m":
        from swapmeet_registry.bases import BaseLibrary

        return BaseLibrary(ROOT / ".cache" / "swapmeet").find(name).path
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import make_tiny

    return make_tiny(folder / name, name, max_position_embeddings=4096)


def show(compared: Compared) -> None:
    """One line of each part."""
    print(f"\n{compared.case}\n  {compared.ratio:.3f} of the measured, planned for the {compared.moment}")
    for part in PARTS:
        planned, measured = compared.planned.get(part, 0) / 1e6, compared.measured[part] / 1e6
        print(f"  {part:12} planned {planned:10.3f} MB   measured {measured:10.3f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only tiny models")
    parser.add_argument("--only", default="", help="only cases whose description has this in it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for one in TINY if options.quick else (*TINY, *REAL):
        if options.only not in str(one):
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            results.append(compare(one, base_of(one.base, folder), folder))
        show(results[-1])
    errors = [abs(result.ratio - 1) for result in results]
    print(json.dumps({
        "benchmark": "plan_accuracy",
        "runs": len(results),
        "mean_error": round(sum(errors) / len(errors), 4),
        "worst_error": round(max(errors), 4),
        "worst": str(results[errors.index(max(errors))].case),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
