"""QLoRA's claims about training, on the demo's tasks and the real base: that it is as good as 16 bits, and in full.

    python benchmarks/training/claims.py [--tasks dates] [--methods QLoRA …] [--seeds 0 1 2] [--results FILE] [--quick]

Every method sees the same batches in the same order for the same seed, and is judged by its loss on unseen examples
and by the share of them that it would answer exactly. Two methods differ by noise alone if 0 lies within the 95 %
interval (Student's t) of their difference, paired by task and seed. What has adapters runs in the service's own loop
with the demo's learning rate; full fine-tuning, which the service does not offer, in a plain one with its batches, loss
and optimizer, at a rate found with `--rate` on another seed: weights in fp32, products in bf16. With `--results`, runs
that stand in the file are not made again, and several processes may share one. Seconds are of CPU time. Ends with one
JSON line.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from swapmeet.demo.tasks import TASKS, Task
from swapmeet_registry.bases import BaseLibrary
from swapmeet_registry.fingerprint import Fingerprint, Quantization
from swapmeet_training import FineTune
from swapmeet_training.data.dataset import Dataset, load_dataset
from swapmeet_training.loop.batches import collate
from swapmeet_training.loop.losses import Supervised, token_losses
from swapmeet_training.loop.optimization import Optimizer, learning_rate
from swapmeet_training.loop.order import Order
from swapmeet_training.loop.trainer import Trainer
from swapmeet_training.lora.model import attach_lora, choose_attention, load_base
from swapmeet_training.plan import BaseShape, Planned, RunSettings, lengths_of, own_hardware
from swapmeet_training.progress import ignore, never

ROOT = Path(__file__).parents[2]
BASE = "smollm2-135m"
TRAINING, HELD_OUT = 480, 100
RECIPE = {"batch_size": 8, "warmup_ratio": 0.1, "gradient_checkpointing": False}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
TIMES_DEVIATION = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306}
"""Student's t at 97.5 % by the number of pairs."""


@dataclass(frozen=True)
class Method:
    """How a base is held and what of it is trained: adapters of some rank, or with rank 0 all of it.

    `paper` is QLoRA's mean 5-shot MMLU after tuning LLaMA 7B to 65B on Alpaca and FLAN v2 (table 4).
    """

    quantization: Quantization | None
    rank: int
    learning_rate: float
    paper: float | None = None
    targets: Any = "all-linear"


REFERENCE = "QLoRA"
METHODS = {
    REFERENCE: Method(Quantization(), 16, 1e-3, paper=53.1),
    "constants in 32 bits": Method(Quantization(double=False), 16, 1e-3),
    "FP4": Method(Quantization(method="fp4", double=False), 16, 1e-3, paper=52.2),
    "16-bit LoRA": Method(None, 16, 1e-3, paper=53.0),
    "attention only": Method(Quantization(), 42, 1e-3, targets=ATTENTION),  # of the rank that has as many weights
    "full, 16 bits": Method(None, 0, 2e-4),
}


@dataclass(frozen=True)
class Trained:
    """A run: mean loss in nats per token and exact answers on unseen examples, and seconds as measured and planned."""

    task: str
    method: str
    seed: int
    steps: int
    loss: float
    exact: float
    trained: int
    seconds: float
    planned: float | None

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What was run."""
        return self.task, self.method, self.seed, self.steps


def train(task: Task, name: str, seed: int, steps: int, held_out: int, rate: float | None = None) -> Trained:
    """Train and examine one method, with a learning rate of its own or this one."""
    method = replace(METHODS[name], learning_rate=rate or METHODS[name].learning_rate)
    with tempfile.TemporaryDirectory() as folder:
        spec = _spec(task, method, seed, steps, held_out, Path(folder))
        data = load_dataset(spec)
        base = _base(spec, method)
        choose_attention(base, data.longest)
        began = time.process_time()
        model = _adapters(base, spec, data, Path(folder)) if method.rank else _in_full(base, spec, data)
        seconds = time.process_time() - began
        planned = _planned(spec) if method.quantization else None
    loss, exact = examine(model, data)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return Trained(_short(task), name, seed, steps, loss, exact, trained, seconds, planned)


def _adapters(base: Any, spec: FineTune, data: Dataset, folder: Path) -> Any:
    model = attach_lora(base, spec)
    objective, rows = Supervised(data.pad), [(sequence,) for sequence in data.training]
    trainer = Trainer(
        spec, model, objective, rows, [], folder, report=ignore, seal=ignore, saved=ignore, keep=1
    )  # fmt: skip
    trainer.train(never)
    return model.eval()


def _in_full(model: Any, spec: FineTune, data: Dataset) -> Any:
    """All weights, in a plain loop."""
    objective, rows = Supervised(data.pad), [(sequence,) for sequence in data.training]
    order, optimizer = Order(rows, spec.batch_size, spec.seed), Optimizer(spec, model.train())
    assert spec.max_steps
    for step in range(spec.max_steps):
        units = order.at(step)
        with torch.autocast("cpu", torch.bfloat16):
            score = objective.score(model, units)
        (score.loss / objective.count(units)).backward()
        optimizer.clip()
        optimizer.step(learning_rate(spec, step, spec.max_steps))
    return model.eval()


def examine(model: Any, data: Dataset) -> tuple[float, float]:
    """Mean loss per trained token of the held-out examples, and the share whose every token is the likeliest."""
    total = tokens = right = 0.0
    sequences = sorted(data.held_out, key=lambda sequence: len(sequence.tokens))
    whole = next(model.parameters()).dtype == torch.float32
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=whole):
        for start in range(0, len(sequences), 16):
            rows = [(sequence,) for sequence in sequences[start : start + 16]]
            scored = token_losses(model, collate(rows, data.pad))
            total += float(scored.losses.sum())
            tokens += len(scored.losses)
            right += len(rows) - len(scored.owners[~scored.hits].unique())
    return total / tokens, right / len(sequences)


def _base(spec: FineTune, method: Method) -> Any:
    if method.quantization:
        return load_base(spec.base, quantization=method.quantization)
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if method.rank else torch.float32
    model = AutoModelForCausalLM.from_pretrained(spec.base, dtype=dtype, local_files_only=True)
    model.config.use_cache = False
    return model.requires_grad_(not method.rank)


def _spec(task: Task, method: Method, seed: int, steps: int, held_out: int, folder: Path) -> FineTune:
    files = [folder / "training.jsonl", folder / "held-out.jsonl"]
    for examples, file in zip(task.split(TRAINING, held_out), files, strict=True):
        task.write(examples, file)
    return FineTune(
        name="qlora/claims",
        base=BaseLibrary(ROOT / ".cache" / "swapmeet").find(BASE).path,
        base_fingerprint=Fingerprint(name=BASE, weights="unread", tokenizer="unread"),
        data=files[0],
        validation=files[1],
        rank=method.rank or 1,
        alpha=2 * (method.rank or 1),
        target_modules=method.targets,
        learning_rate=method.learning_rate,
        max_steps=steps,
        seed=seed,
        **RECIPE,
    )


def _planned(spec: FineTune) -> float:
    """Seconds that the plan expects one core to compute."""
    lengths, _ = lengths_of(spec)
    settings = RunSettings.of(spec.model_dump())
    return Planned(BaseShape.of(spec.base), settings, lengths, own_hardware(0, 1)).computing


@dataclass(frozen=True)
class Paged:
    """An optimizer's step over the weights of a rank 16 adapter: CPU milliseconds, states, and how it differs."""

    milliseconds: float
    megabytes: float
    difference: float


def optimizers(steps: int) -> dict[str, Paged]:
    """Each optimizer on the same weights and gradients; differences are from torch's AdamW, in moved distance."""
    ends, results = {}, {}
    for name in ("adamw_torch", "paged_adamw_32bit", "paged_adamw_8bit"):
        torch.manual_seed(0)
        model = torch.nn.Module()
        for number, (out, into) in enumerate(BaseShape.of(_base_folder()).linears.values()):
            for part, size in (("A", (16, into)), ("B", (out, 16))):
                model.register_parameter(f"{number}{part}", torch.nn.Parameter(0.02 * torch.randn(size)))
        begun = [weight.detach().clone() for weight in model.parameters()]
        settings: Any = FineTune.model_construct(optimizer=name, learning_rate=1e-3, weight_decay=0.0, max_grad_norm=1)
        optimizer = Optimizer(settings, model)
        seconds = []
        for _ in range(steps):
            for weight in model.parameters():
                weight.grad = torch.randn_like(weight)
            began = time.process_time()
            optimizer.step(1e-3)
            seconds.append(time.process_time() - began)
        moved = torch.cat([(w.detach() - b).flatten() for w, b in zip(model.parameters(), begun, strict=True)])
        ends[name] = moved
        states = sum(tensor.numel() * tensor.element_size() for tensor in optimizer.state().values())
        away = float((moved - ends["adamw_torch"]).norm() / moved.norm())
        results[name] = Paged(1e3 * statistics.median(seconds), states / 1e6, away)
    return results


def compare(runs: Sequence[Trained], name: str) -> tuple[float, float] | None:
    """Mean difference of a method's loss from the reference's, and half the width of its 95 % interval."""
    reference = {(run.task, run.seed): run.loss for run in runs if run.method == REFERENCE}
    pairs = [(run, reference.get((run.task, run.seed))) for run in runs if run.method == name]
    differences = [run.loss - other for run, other in pairs if other is not None]
    if name == REFERENCE or len(differences) not in TIMES_DEVIATION:
        return None
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.mean(differences), TIMES_DEVIATION[len(differences)] * error


def show(runs: Sequence[Trained]) -> dict[str, Any]:
    """The table, and the same for the JSON line."""
    print(
        f"\n{'method':22}{'trained':>10}{'loss':>9}{'sd':>9}{'exact':>8}   {'from QLoRA, 95 %':24}{'paper':>7}{'s':>7}"
    )
    shown = {}
    for name, method in METHODS.items():
        own = [run for run in runs if run.method == name]
        if not own:
            continue
        losses, exact = [run.loss for run in own], statistics.mean(run.exact for run in own)
        spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
        found = compare(runs, name)
        noise = found is not None and abs(found[0]) <= found[1]
        told = f"{found[0]:+.4f} ± {found[1]:.4f}{', noise' if noise else ''}" if found else ""
        seconds = statistics.mean(run.seconds for run in own)
        print(f"{name:22}{own[0].trained:10,}{statistics.mean(losses):9.4f}{spread:9.4f}{exact:8.1%}   {told:24}"
              f"{method.paper or '':>7}{seconds:7.0f}")  # fmt: skip
        shown[name] = {
            "runs": len(own), "trained": own[0].trained, "loss": round(statistics.mean(losses), 5),
            "sd": round(spread, 5), "exact": round(exact, 4), "from_qlora": found and round(found[0], 5),
            "half_interval": found and round(found[1], 5), "within_noise": noise if found else None,
        }  # fmt: skip
    return shown


def _base_folder() -> Path:
    return BaseLibrary(ROOT / ".cache" / "swapmeet").find(BASE).path


def _short(task: Task) -> str:
    return task.adapter.partition("/")[2]


def _wanted(options: argparse.Namespace) -> Iterator[tuple[Task, str, int]]:
    """Seed by seed, so that what is done at any time can be compared."""
    for seed in options.seeds:
        for task in TASKS:
            for name in METHODS:
                if _short(task) in options.tasks and name in options.methods:
                    yield task, name, seed


def _known(path: Path | None) -> list[Trained]:
    if path is None or not path.exists():
        return []
    return [Trained(**json.loads(line)) for line in path.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["dates"], choices=[_short(task) for task in TASKS])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rate", type=float, help="learning rate of all methods, to look for good ones")
    parser.add_argument("--results", type=Path, help="JSON lines of runs: those there are not made again")
    parser.add_argument("--quick", action="store_true", help="two steps of two seeds")
    options = parser.parse_args()
    held_out = HELD_OUT
    if options.quick:
        options.steps, options.seeds, held_out = 2, [0, 1], 16
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    made: dict[tuple[str, str, int, int], Trained] = {}
    for task, name, seed in _wanted(options):
        key = (_short(task), name, seed, options.steps)
        made |= {run.key: run for run in _known(options.results)}
        if key in made:
            continue
        made[key] = run = train(task, name, seed, options.steps, held_out, options.rate)
        if options.results:
            with options.results.open("a") as stream:
                stream.write(json.dumps(asdict(run)) + "\n")
        planned = f", planned {run.planned:.0f} s" if run.planned else ""
        print(f"{run.task}, {name}, seed {seed}: loss {run.loss:.4f}, exact {run.exact:.1%}, "
              f"{run.seconds:.0f} s{planned}", flush=True)  # fmt: skip
    wanted = {(_short(task), name, seed, options.steps) for task, name, seed in _wanted(options)}
    shown = show([run for run in made.values() if run.key in wanted])
    print("\none optimizer step over an adapter of rank 16, on the CPU, where nothing is paged")
    steps = optimizers(3 if options.quick else 20)
    for name, one in steps.items():
        print(
            f"{name:22}{one.milliseconds:8.1f} ms{one.megabytes:8.1f} MB of states, {one.difference:.1e} from torch's"
        )
    print(json.dumps({
        "benchmark": "claims",
        "base": BASE,
        "tasks": options.tasks,
        "steps": options.steps,
        "seeds": options.seeds,
        "methods": shown,
        "optimizers": {name: {key: float(f"{value:.4g}") for key, value in asdict(one).items()}
                       for name, one in steps.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
