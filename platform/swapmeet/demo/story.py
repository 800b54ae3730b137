"""The demo's course: train, publish, serve, examine, refuse; then a table, and the same as one JSON line."""

import json
import os
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from openai import OpenAI

from swapmeet.cluster import ray_running
from swapmeet.demo.examination import Score, examine, mixed_batch
from swapmeet.demo.refusals import refusals
from swapmeet.demo.tasks import TASKS, Example, Task
from swapmeet.server import check_port, serving
from swapmeet.settings import Settings
from swapmeet.training import adapter_folder, of_base, publish, run_all
from swapmeet_registry import Registry
from swapmeet_registry.bases import Base, BaseLibrary
from swapmeet_training import Resources, fine_tune
from swapmeet_training.attempts.ray_driver import Outcome

TRAINING, HELD_OUT, SHOWN = 480, 100, 3
"""Examples to train on, to be examined on, and to be shown on the adapter's card with its answers."""
RECIPE = {
    "rank": 16,
    "alpha": 32,
    "batch_size": 4,  # in the same time, many small steps teach more than half as many of twice the size
    "learning_rate": 1e-3,
    "warmup_ratio": 0.1,
    "gradient_checkpointing": False,  # the activations of such short examples fit without recomputing them
    "show_examples": True,
}
CPUS_EACH = min(2.0, (os.cpu_count() or 1) / len(TASKS))
"""All runs side by side: on few cores, three of one thread each together beat one after another."""

Lesson = tuple[Task, tuple[list[Example], list[Example]]]
"""A task with its training and its held-out examples."""


def run_demo(settings: Settings, scratch: Path, *, quietly: bool = False) -> None:
    """Tell the whole story once; `scratch` is a folder to throw away afterwards.

    Quietly, standard output holds the closing JSON line only.
    """
    say = _clock(sys.stderr if quietly else sys.stdout)
    check_port(settings)
    base = BaseLibrary(settings.folder, say).find(settings.base)
    with redirect_stdout(sys.stderr), ray_running(settings):  # Ray tells of its workers in the middle of anything
        say(f"Training {len(TASKS)} tenants' adapters on {base.name}")
        lessons: list[Lesson] = [(task, task.split(TRAINING, HELD_OUT + SHOWN)) for task in TASKS]
        outcomes = _train(settings, base, lessons, scratch, say)
        with serving(settings, say) as running:
            client = OpenAI(base_url=f"{running.url}/v1", api_key=running.admin_key, timeout=600)
            say(f"Serving on {running.url}; asking {HELD_OUT} unseen questions of each adapter and of the base")
            scores = examine(client, base.name, [(task, held_out[:HELD_OUT]) for task, (_, held_out) in lessons])
            say("One batch with all adapters and the base")
            batch = mixed_batch(client, base.name, TASKS)
            say("What must be refused")
            refused = refusals(client, base, TASKS[0].adapter, adapter_folder(outcomes[0]), scratch)
    tenants = [_row(*each) for each in zip(TASKS, scores, outcomes, strict=True)]
    say("Done")
    if not quietly:
        _print_tables(tenants, batch, refused)
    print(json.dumps({"tenants": tenants, "mixed_batch": batch, "refused": refused}), flush=True)


def _train(
    settings: Settings,
    base: Base,
    lessons: list[Lesson],
    scratch: Path,
    say: Any,
) -> list[Outcome]:
    """Train every task, as many at once as fit, and publish each."""
    specs = []
    for task, (training, held_out) in lessons:
        data, shown = (scratch / f"{task.adapter.replace('/', '-')}{end}.jsonl" for end in ("", "-shown"))
        task.write(training, data)
        task.write(held_out[HELD_OUT:], shown)
        settings_of_run = {"name": task.adapter, "data": data, "validation": shown, "max_steps": task.steps}
        specs.append(fine_tune({**settings_of_run, **RECIPE, **of_base(base)}))
    outcomes = run_all(settings, specs, scratch / "runs", Resources(cpus=CPUS_EACH), say)
    registry = Registry(settings.registry_url)
    for spec, outcome in zip(specs, outcomes, strict=True):
        version = publish(registry, spec, outcome, alias="prod")
        say(f"Published {version} {version.digest[:19]}…")
    return outcomes


def _row(task: Task, score: Score, outcome: Outcome) -> dict[str, Any]:
    return {
        "adapter": task.adapter,
        "task": task.title,
        "base_accuracy": score.base,
        "adapter_accuracy": score.adapter,
        "held_out": HELD_OUT,
        "train_seconds": round(outcome.seconds, 1),
        "bytes": (adapter_folder(outcome) / "adapter_model.safetensors").stat().st_size,
    }


def _print_tables(tenants: list[dict[str, Any]], batch: dict[str, Any], refused: list[dict[str, str]]) -> None:
    print(f"\n{'adapter':18} {'task':36} {'base':>6} {'adapter':>8} {'trained':>9} {'size':>9}")
    for row in tenants:
        accuracy = f"{row['base_accuracy']:6.0%} {row['adapter_accuracy']:8.0%}"
        size = f"{row['train_seconds']:7.0f} s {row['bytes'] / 1e6:6.1f} MB"
        print(f"{row['adapter']:18} {row['task']:36} {accuracy} {size}")
    print(f"\nmixed batch of {batch['requests']} requests: {batch['tokens_per_second']} tokens/s\n")
    for case in refused:
        print(f"{case['case']}: {case['error']}")
    print()


def _clock(stream: TextIO) -> Any:
    """A printer that puts the time since now before each line."""
    start = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - start:6.1f} s  {line}", file=stream, flush=True)

    return say
