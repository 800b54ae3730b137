"""One fine-tune by Swapmeet beside a plain transformers + PEFT + bitsandbytes script with the same settings.

    python benchmarks/training/one_run.py [--quick] [--rounds 5] [--steps 20] [--no-platform]

Both train the same batches of the demo's data on SmolLM2-135M: NF4 with double quantization, rank 16 on all linear
layers, gradient checkpointing, paged AdamW of 32 bits. Each round runs each side once, in a process of its own, in
turns; the script (`plain_script.py`) is run as it is and as PEFT's guide prepares a model. Speeds leave the first step
out, which warms up. What counts are the ratios within a round; those by processor time hold on a busy machine, too.

Then jobs are sent to a running `swapmeet up`, and their events tell how long each part took from the submission to the
end of the first step: the first with nothing warm, the others as usual, each on one CPU beside the idle engine. Beside
them stands the script's own start.
Ends with one JSON line.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
BATCH, EXAMPLES = 8, 480
READY_SECONDS = 900.0
Figures = dict[str, Any]


def main() -> None:
    options = parse()
    if options.side:
        print(json.dumps(train(json.loads(options.side))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        told = prepare(options, Path(scratch))
        rounds = take_turns(options, told, Path(scratch))
        jobs = [] if options.no_platform else list(submitted(options, told, Path(scratch)))
    report(options, told, rounds, jobs)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of 4 steps, and two jobs")
    parser.add_argument("--rounds", type=int, default=5, help="how often each side runs, and jobs once warm (5)")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of a run (20)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="that both compute with (all cores)")
    parser.add_argument("--no-platform", action="store_true", help="leave out the jobs sent to `swapmeet up`")
    parser.add_argument("--port", type=int, default=8199, help="where that answers (8199)")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.steps = 1, 4
    if options.steps < 2:
        parser.error("--steps must be 2 or more: the first is left out of speeds")
    return options


def prepare(options: argparse.Namespace, scratch: Path) -> Figures:
    """The settings of our side, and the same batches for the script."""
    from swapmeet.demo.tasks import TASKS
    from swapmeet_registry.bases import BaseLibrary
    from swapmeet_training import fine_tune, load_dataset
    from swapmeet_training.loop.order import Order

    task, data = TASKS[0], scratch / "dates.jsonl"
    task.write(task.split(EXAMPLES, 1)[0], data)
    base = BaseLibrary(ROOT / ".cache" / "swapmeet", lambda line: print(line, file=sys.stderr)).find("smollm2-135m")
    settings = {"batch_size": BATCH, "max_steps": options.steps, "save_every": options.steps}
    named = {"name": "bench/dates", "base": base.path, "base_fingerprint": base.fingerprint, "data": data}
    spec = fine_tune(settings | named)
    order = Order(load_dataset(spec).training, BATCH, spec.seed)
    batches = [order.at(step) for step in range(options.steps)]
    told = [[{"input_ids": list(each.tokens), "labels": list(each.labels)} for each in step] for step in batches]
    (scratch / "batches.json").write_text(json.dumps(told))
    tokens = [sum(len(each.tokens) for each in step) for step in batches]
    return {"base": str(base.path), "data": str(data), "settings": settings, "tokens": tokens}


def take_turns(options: argparse.Namespace, told: Figures, scratch: Path) -> dict[str, list[Figures]]:
    """Every side's figures, round by round."""
    script = [str(Path(__file__).with_name("plain_script.py")), told["base"], str(scratch / "batches.json")]
    script += ["--threads", str(options.threads)]
    ours = {"threads": options.threads, "scratch": str(scratch), **told}
    sides = {
        "swapmeet": [__file__, "--side", json.dumps(ours)],
        "script": script,
        "script as in PEFT's guide": [*script, "--guide"],
    }
    figures: dict[str, list[Figures]] = {name: [] for name in sides}
    for number in range(options.rounds):
        for name, command in sides.items():
            print(f"round {number + 1} of {options.rounds}: {name}", file=sys.stderr, flush=True)
            began = time.time()
            done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True)
            if done.returncode:
                raise SystemExit(f"{name} ended with {done.returncode}; its message stands above.")
            measured: Figures = json.loads(done.stdout.splitlines()[-1])
            measured["moments"]["began"] = began
            figures[name].append(measured)
    return figures


def train(told: Figures) -> Figures:
    """Our side, in this process: `swapmeet_training.run`."""
    import torch

    from swapmeet_registry.fingerprint import fingerprint
    from swapmeet_training import fine_tune, run

    torch.set_num_threads(told["threads"])
    moments: dict[str, float] = {"began": 0.0}
    losses: list[float] = []
    ends: list[float] = []
    processor: list[float] = []

    def stepped(progress: Any) -> None:
        losses.append(progress.loss)
        ends.append(time.time())
        processor.append(time.process_time())

    base = Path(told["base"])
    named = {"name": "bench/dates", "base": base, "base_fingerprint": fingerprint(base, "smollm2-135m")}
    moments["imports"] = time.time()
    with tempfile.TemporaryDirectory(dir=told["scratch"]) as folder:
        spec = fine_tune({**told["settings"], **named, "data": told["data"]})
        run(spec, Path(folder), report=stepped, reached=lambda part: moments.update({part: time.time()}))
    moments["step"] = ends[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"losses": losses, "ends": ends, "processor": processor, "peak": peak, "moments": moments}


@contextmanager
def platform(options: argparse.Namespace, told: Figures, home: Path) -> Iterator[Any]:
    """`swapmeet up` within the block; gives a client of it."""
    from openai import OpenAI

    command = [sys.executable, "-m", "swapmeet", "up", "--base", told["base"], "--home", str(home)]
    command += ["--port", str(options.port), "--json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SWAPMEET_")}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        try:
            line = server.stdout.readline()
            if not line:
                raise SystemExit("swapmeet up did not start; its message stands above.")
            ready = json.loads(line)
            yield OpenAI(base_url=f"{ready['url']}/v1", api_key=ready["admin_key"], timeout=120)
        finally:
            server.send_signal(signal.SIGTERM)


def submitted(options: argparse.Namespace, told: Figures, scratch: Path) -> Iterator[Figures]:
    """What the events of jobs tell of their start: one before anything is warm, and then as many as rounds."""
    print("starting the platform", file=sys.stderr, flush=True)
    home = scratch / "home"
    with platform(options, told, home) as client:
        with open(told["data"], "rb") as stream:
            file = client.files.create(file=stream, purpose="fine-tune")
        client.files.wait_for_processing(file.id, poll_interval=0.2, max_wait_seconds=READY_SECONDS)
        for number in range(options.rounds + 1):
            print(f"job {number + 1} of {options.rounds + 1}", file=sys.stderr, flush=True)
            yield started(client, file.id, number)
            if number == 0:
                wait_for(lambda: (home / "cache" / "warm.sock").exists())


def started(client: Any, file: str, number: int) -> Figures:
    """One job: the seconds of each part until its first step was done, and its own end."""
    began = time.time()
    job = client.fine_tuning.jobs.create(
        model=client.models.list().data[0].id,
        training_file=file,
        suffix=f"dates{number}",
        method={"type": "supervised", "supervised": {"hyperparameters": {"batch_size": BATCH}}},
        extra_body={"lora": {"max_steps": 2}},
    )
    ends = ("succeeded", "failed", "cancelled")
    wait_for(lambda: client.fine_tuning.jobs.retrieve(job.id).status in ends)
    seconds = time.time() - began
    events = list(client.fine_tuning.jobs.list_events(job.id))
    told = next((event.data for event in events if isinstance(event.data, dict) and "total" in event.data), None)
    if told is None:
        raise SystemExit(f"{job.id} made no step: {[event.message for event in events]}")
    return {**told, "end": round(seconds, 3)}


def wait_for(done: Any) -> None:
    until = time.monotonic() + READY_SECONDS
    while not done():
        if time.monotonic() > until:
            raise SystemExit(f"The platform took over {READY_SECONDS:.0f} s for one job.")
        time.sleep(0.2)


def summary(figures: Sequence[Figures], tokens: Sequence[int]) -> dict[str, float]:
    """Medians over rounds: tokens a second, by the clock and the processor, peak in MB, seconds to the first step."""
    trained = sum(tokens[1:])
    return {
        "tokens_per_second": median(trained / (each["ends"][-1] - each["ends"][0]) for each in figures),
        "tokens_per_cpu_second": median(trained / (each["processor"][-1] - each["processor"][0]) for each in figures),
        "peak_mb": median(each["peak"] for each in figures) / 1e6,
        "first_step_seconds": median(each["moments"]["step"] - each["moments"]["began"] for each in figures),
        "last_loss": figures[-1]["losses"][-1],
    }


def ratios(ours: Sequence[Figures], theirs: Sequence[Figures]) -> dict[str, float]:
    """Ours over theirs, a median over rounds."""

    def ratio(figure: Any) -> float:
        return median(figure(one) / figure(other) for one, other in zip(ours, theirs, strict=True))

    return {
        "tokens_per_second": ratio(lambda each: 1 / (each["ends"][-1] - each["ends"][0])),
        "tokens_per_cpu_second": ratio(lambda each: 1 / (each["processor"][-1] - each["processor"][0])),
        "peak_mb": ratio(lambda each: each["peak"]),
    }


def parts(moments: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each part, from moments in order."""
    return {name: moments[name] - moments[before] for before, name in pairwise(moments)}


def report(
    options: argparse.Namespace, told: Figures, rounds: dict[str, list[Figures]], jobs: Sequence[Figures]
) -> None:
    """Tables for people and one line for programs."""
    sums = {name: summary(figures, told["tokens"]) for name, figures in rounds.items()}
    print(f"{'':28}{'tokens/s':>10}{'tokens/cpu-s':>14}{'peak MB':>10}{'1st step s':>12}{'last loss':>11}")
    for name, each in sums.items():
        print(f"{name:28}" + "".join(f"{each[key]:{width}.4g}" for key, width in zip(each, WIDTHS, strict=True)))
    against = {name: ratios(rounds["swapmeet"], rounds[name]) for name in rounds if name != "swapmeet"}
    for name, each in against.items():
        print(f"{'swapmeet / ' + name:38}"[:38] + "".join(f"{value:{12}.3f}" for value in each.values()))
    script = median_parts([parts(each["moments"]) for each in rounds["script"]])
    print("\nseconds from its start to the end of its first step, the script alone:")
    print_parts(script)
    shown: Figures = {}
    if jobs:
        cold, warm = jobs[0], jobs[1:]
        shown = {
            "cold": cold["seconds"] | {"total": cold["total"]},
            "warm": median_parts([each["seconds"] for each in warm]) | {"total": median(e["total"] for e in warm)},
            "to_success": round(median(each["end"] for each in warm), 2),
        }
        for kind in ("cold", "warm"):
            print(f"seconds from submission to the end of the first step, {kind}:")
            print_parts(shown[kind])
    print(
        json.dumps(
            {
                "benchmark": "one_run",
                "rounds": options.rounds,
                "steps": options.steps,
                "threads": options.threads,
                "sides": {name: rounded(each) for name, each in sums.items()},
                "ratios": {name: rounded(each) for name, each in against.items()},
                "script_start": rounded(script | {"total": sum(script.values())}),
                "platform": {key: rounded(v) if isinstance(v, dict) else v for key, v in shown.items()},
            }
        )
    )


WIDTHS = (10, 14, 10, 12, 11)


def median_parts(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {part: median(row[part] for row in rows) for part in rows[0]}


def print_parts(seconds: Mapping[str, float]) -> None:
    print("  " + ", ".join(f"{part} {value:.2f}" for part, value in seconds.items()))


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in values.items()}


if __name__ == "__main__":
    main()
