"""What the serving benchmarks share: the real base, random adapters, rounds that take turns, sides in processes.

Imports nothing but the standard library at once, because another project's interpreter runs `vllm_side.py`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from swapmeet_registry.bases import Base
    from swapmeet_serving import Engine

HOME = Path(__file__).parents[2] / ".cache" / "swapmeet"
RANK = 16
Round = Callable[[], float]
"""Does the work once and gives a figure: seconds, or whatever is compared."""
Answer = Callable[[dict[str, Any]], dict[str, Any]]


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring as it is."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def bench_base() -> "Base":
    """SmolLM2-135M, fetched the first time; SWAPMEET_BENCH_BASE names the folder of another."""
    from swapmeet_registry.bases import Base, BaseLibrary
    from swapmeet_registry.fingerprint import fingerprint

    if folder := os.environ.get("SWAPMEET_BENCH_BASE"):
        path = Path(folder).resolve()
        return Base(path.name, path, str(path), fingerprint(path, path.name))
    return BaseLibrary(HOME, lambda line: print(line, file=sys.stderr)).find("smollm2-135m")


def linear_layers(base: Path) -> dict[str, tuple[int, ...]]:
    """Shapes (out, in) of the linear layers that "all-linear" means, which leaves out the output head."""
    from swapmeet_registry.bases import module_shapes

    return {name: shape for name, shape in module_shapes(base).items() if ".layers." in name and len(shape) == 2}


def adapter_bytes(base: Path, rank: int = RANK) -> int:
    """Memory that one adapter on all linear layers takes in the engine, which holds it in bfloat16."""
    return 2 * rank * sum(sum(shape) for shape in linear_layers(base).values())


def random_adapter(base: Path, folder: Path, seed: int, rank: int = RANK) -> Path:
    """An adapter on all linear layers, random: speed does not depend on values."""
    import numpy as np
    from peft import LoraConfig
    from safetensors.numpy import save_file

    layers, random = linear_layers(base), np.random.default_rng(seed)
    weights = {}
    for name, (out, into) in layers.items():
        for letter, shape in (("A", (rank, into)), ("B", (out, rank))):
            values = 0.02 * random.standard_normal(shape, dtype=np.float32)
            weights[f"base_model.model.{name}.lora_{letter}.weight"] = values
    targets = sorted({name.rpartition(".")[2] for name in layers})
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, task_type="CAUSAL_LM", inference_mode=True)
    config.base_model_name_or_path = base.name
    config.save_pretrained(folder)
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def prompts(tokenizer: Any, count: int) -> list[list[int]]:
    """Short prompts, all different."""
    texts = [f"Tell me a short story number {i} about a fox near the sea." for i in range(count)]
    return [tokenizer(text)["input_ids"] for text in texts]


def decode(engine: "Engine", ids: Sequence[Sequence[int]], adapters: Sequence[str], tokens: int) -> float:
    """Seconds from the first submit to the last token of one batch, whose requests take adapters in turn, if any."""
    from swapmeet_serving import Request, Sampling

    sampling = Sampling(max_tokens=tokens, ignore_eos=True)
    start = time.perf_counter()
    for index, prompt in enumerate(ids):
        adapter = adapters[index % len(adapters)] if adapters else None
        engine.submit(Request(f"{start}-{index}", tuple(prompt), adapter, sampling))
    while engine.busy:
        engine.wait()
        for output in engine.step():
            if output.error:
                raise output.error
    return time.perf_counter() - start


def take_turns(sides: Mapping[str, Round], rounds: int) -> dict[str, list[float]]:
    """Each side's figures, round by round after one warm-up each, so that a drifting machine treats them alike."""
    for side in sides.values():
        side()
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            figures[name].append(side())
    return figures


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-percent * len(ordered) // 100) - 1)]


def resident_memory() -> float:
    """Resident memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def gauge(engine: "Engine", name: str) -> float:
    """What an engine's metric without labels holds now."""
    return next(family.points[()] for family in engine.families() if family.name == name)  # type: ignore[return-value]


def report(benchmark: str, **figures: Any) -> None:
    """The one line for programs, which ends every benchmark."""
    print(json.dumps({"benchmark": benchmark, **figures}))


def rounded(values: Mapping[str, Sequence[float]], digits: int = 2) -> dict[str, float]:
    """The median of each."""
    return {name: round(median(each), digits) for name, each in values.items()}


class Side:
    """A side in processes of its own, so that none inherits another's threads or memory.

    They are stopped until they are asked, because what waits for work may spin for it.
    """

    def __init__(self, *command: str | Path) -> None:
        self._command = [str(part) for part in command]
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def ask(self, **question: Any) -> dict[str, Any]:
        """Its answer, which is awaited."""
        os.killpg(self._process.pid, signal.SIGCONT)
        answer = self._answer(question)
        os.killpg(self._process.pid, signal.SIGSTOP)
        return answer

    def _answer(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(question), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self._command[:2])} ended; its message stands above.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGCONT)
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)


def serve_side(make: Callable[[], Answer]) -> None:
    """Be a side: answer each line of standard input. Whatever else is printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answer = make()
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)
