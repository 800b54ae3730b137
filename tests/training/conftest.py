"""Specs on a tiny base with a small chat data set, and one torch thread: more only get in each other's way."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

MONTHS = ("January", "February", "March")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """`write_jsonl(name, *examples)`: a file with one JSON object a line."""

    def write(name: str, *examples: Any) -> Path:
        path = tmp_path / name
        path.write_text("".join(f"{json.dumps(example)}\n" for example in examples), encoding="utf-8")
        return path

    return write


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def make_spec(tiny_llama: Path, write_jsonl: Callable[..., Path]) -> Callable[..., Any]:
    """`make_spec(examples=12, **settings)`: a fine-tune of the tiny Llama, 3 steps an epoch by default."""
    from swapmeet_registry.fingerprint import fingerprint
    from swapmeet_training import FineTune

    base_fingerprint = fingerprint(tiny_llama, "tiny-llama")

    def make(examples: int = 12, **settings: Any) -> FineTune:
        dates = [
            chat(f"{day} {MONTHS[day % 3]} 1999", f"1999-0{day % 3 + 1}-{day:02}") for day in range(1, examples + 5)
        ]
        return FineTune(
            **{
                "name": "acme/dates",
                "base": tiny_llama,
                "base_fingerprint": base_fingerprint,
                "data": write_jsonl("train.jsonl", *dates[4:]),
                "validation": write_jsonl("held-out.jsonl", *dates[:4]),
                "batch_size": 4,
                "rank": 4,
                "learning_rate": 5e-3,
                "epochs": 2,
            }
            | settings
        )

    return make


@pytest.fixture
def make_pair() -> Callable[[int, dict[str, list[int]]], Any]:
    """`make_pair(line, {"prompt_ids", "chosen_ids", "rejected_ids"})`: a pair to prefer one answer of."""
    from swapmeet_training.data.masking import IGNORED, Pair, Sequence

    def make(line: int, row: dict[str, list[int]]) -> Pair:
        prompt = tuple(row["prompt_ids"])
        answers = (tuple(row[side]) for side in ("chosen_ids", "rejected_ids"))
        chosen, rejected = (Sequence(line, prompt + answer, (IGNORED,) * len(prompt) + answer) for answer in answers)
        return Pair(line, chosen, rejected)

    return make


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch, make_pair: Callable[..., Any]) -> None:
    """Runs read pairs out of lines of token ids."""
    from swapmeet_training import Dataset, FineTune

    def load(spec: FineTune) -> Dataset:
        def read(path: Path) -> list[Any]:
            return [make_pair(line, json.loads(text)) for line, text in enumerate(path.read_text().splitlines(), 1)]

        return Dataset(read(spec.data), read(spec.validation) if spec.validation else [], 0)

    monkeypatch.setattr("swapmeet_training.qlora.load_dataset", load)
    monkeypatch.setattr(Dataset, "longest", 32)


@pytest.fixture
def ending() -> Callable[[Any], dict[str, Any]]:
    """`ending(result)`: all that a run leaves, but for times."""

    def of(result: Any) -> dict[str, Any]:
        folder = result.adapter.parent
        return {
            "weights": (result.adapter / "adapter_model.safetensors").read_bytes(),
            "metrics": {name: value for name, value in result.metrics.items() if name != "tokens_per_second"},
            "tokens": result.trained_tokens,
            "steps": result.steps,
            "rows": (folder / "metrics.csv").read_text(),
            "losses": (folder / "losses.jsonl").read_text(),
            "worst": result.worst,
            "notes": result.notes,
        }

    return of


@pytest.fixture
def memory_for() -> Callable[..., AbstractContextManager[None]]:
    """`with memory_for(rows)`: larger micro-batches meet the allocator's error, by torch's hook on all modules."""
    import torch

    @contextmanager
    def limited(rows: int, cuda: bool = True) -> Iterator[None]:
        def hook(module: Any, inputs: Any) -> None:
            if type(module) is torch.nn.Embedding and len(inputs[0]) > rows:
                if cuda:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
                raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")

        handle = torch.nn.modules.module.register_module_forward_pre_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    return limited
