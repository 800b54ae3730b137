"""A run that was interrupted, parked or short of memory ends as if it had not been, bit for bit."""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from swapmeet_training import FineTune, OutOfMemory, Parked, Progress, Result, RunFailed, run

pytest.importorskip("torch")

MakeSpec = Callable[..., FineTune]


class Interrupted(Exception):
    """Stops a run from outside, as a kill would."""


def interrupt_at(step: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise Interrupted

    return report


Ending = Callable[[Result], dict[str, Any]]
Memory = Callable[..., AbstractContextManager[None]]

ALL = {"dropout": 0.1, "packing": True, "max_length": 64, "batch_size": 2, "gradient_accumulation": 2, "epochs": 3}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cosine": {"dropout": 0.1, "gradient_accumulation": 2, "schedule": "cosine", "epochs": 5},
    "paged 32 bit": ALL | {"optimizer": "paged_adamw_32bit"},
    "paged 8 bit": ALL | {"optimizer": "paged_adamw_8bit", "rank": 32},
    "torch": ALL | {"optimizer": "adamw_torch", "weight_decay": 0.1},
    "pissa": {"dropout": 0.1, "init": "pissa"},
    "dora": {"dropout": 0.1, "dora": True},
    "not the best": {"keep_best": False, "learning_rate": 0.3},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    ending: Ending, make_spec: MakeSpec, tmp_path: Path, name: str
) -> None:
    spec = make_spec(**{"examples": 24, "save_every": 2, "eval_every": 1, "epochs": 1, **SETTINGS[name]})
    whole = run(spec, tmp_path / "whole")
    assert whole.steps > 3

    with pytest.raises(RunFailed):
        run(spec, tmp_path / "cut", report=interrupt_at(3))
    elsewhere = shutil.copytree(tmp_path / "cut" / "checkpoint-2", tmp_path / "stored" / "checkpoint-2")
    shutil.rmtree(tmp_path / "cut")
    told: list[Progress] = []
    resumed = run(spec, tmp_path / "other", report=told.append, resume_from=elsewhere)

    assert told[0].step == 3
    assert resumed.resumed_from == 2
    assert ending(resumed) == ending(whole)


@pytest.mark.usefixtures("pairs")
@pytest.mark.parametrize("with_parent", [False, True])
def test_an_interrupted_dpo_run_ends_as_an_uninterrupted_one(
    ending: Ending,
    make_spec: MakeSpec,
    write_jsonl: Callable[..., Path],
    random_lora: Callable[..., Path],
    tiny_llama: Path,
    tmp_path: Path,
    with_parent: bool,
) -> None:
    rows = [{"prompt_ids": [5, 6, n], "chosen_ids": [n, 8, 2], "rejected_ids": [9, n, 9, 2]} for n in range(10, 26)]
    settings: dict[str, Any] = {"method": "dpo", "dropout": 0.1, "data": write_jsonl("pairs.jsonl", *rows[:12])}
    settings |= {"validation": write_jsonl("held.jsonl", *rows[12:]), "save_every": 2, "gradient_accumulation": 2}
    if with_parent:
        settings |= {"parent": random_lora(tiny_llama, tmp_path / "parent", rank=4, lora_alpha=32)}
    spec = make_spec(batch_size=2, learning_rate=1e-3, **settings)
    whole = run(spec, tmp_path / "whole")
    with pytest.raises(RunFailed):
        run(spec, tmp_path / "cut", report=interrupt_at(3))
    resumed = run(spec, tmp_path / "cut", resume_from=tmp_path / "cut" / "checkpoint-2")
    assert ending(resumed) == ending(whole)


def test_a_parked_run_ends_as_one_that_was_not(ending: Ending, make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(dropout=0.1, save_every=100)
    whole = run(spec, tmp_path / "whole")
    parked, checkpoint = 0, None
    asked: list[bool] = []

    def stop() -> bool:
        asked.append(len(asked) % 3 == 0)
        return asked[-1]

    while not isinstance(ended := run(spec, tmp_path / "run", stop=stop, resume_from=checkpoint), Result):
        assert isinstance(ended, Parked)
        assert ended.checkpoint == tmp_path / "run" / f"checkpoint-{ended.step}"
        parked, checkpoint = parked + 1, ended.checkpoint
    assert parked == 3, "before the first step, and after every second one but the last"
    assert ending(ended) == ending(whole)


def test_a_run_that_was_out_of_memory_is_one_of_smaller_micro_batches(
    ending: Ending, memory_for: Memory, make_spec: MakeSpec, tmp_path: Path
) -> None:
    settings = {"examples": 24, "epochs": 1, "dropout": 0.1, "save_every": 2}
    small = run(make_spec(batch_size=2, gradient_accumulation=4, **settings), tmp_path / "small")
    told: list[Progress] = []
    with memory_for(3):
        halved = run(make_spec(batch_size=8, **settings), tmp_path / "halved", report=told.append)
    assert [progress.note for progress in told[1:]] == [""] * (len(told) - 1)
    assert "Out of memory in step 1: micro-batches have 4 rows instead of 8" in told[0].note
    assert "micro-batches have 2 rows instead of 4" in told[0].note
    assert len(halved.notes) == 2
    assert ending(halved) | {"notes": ()} == ending(small), "the same steps on the same examples"
    checkpoint = tmp_path / "halved" / "checkpoint-2"
    resumed = run(make_spec(batch_size=8, **settings), tmp_path / "resumed", resume_from=checkpoint)
    assert ending(resumed) == ending(halved), "a resumed run knows what fits"


@pytest.mark.parametrize("cuda", [True, False])
def test_one_row_that_does_not_fit_ends_the_run(
    memory_for: Memory, make_spec: MakeSpec, tmp_path: Path, cuda: bool
) -> None:
    with memory_for(0, cuda), pytest.raises(OutOfMemory, match=r"not even with one row at a time\. Lower max_length"):
        run(make_spec(), tmp_path / "run")


def test_an_evaluation_that_does_not_fit_is_halved_too(memory_for: Memory, make_spec: MakeSpec, tmp_path: Path) -> None:
    """More rows are evaluated at once than are trained on here."""
    whole = run(make_spec(batch_size=4, examples=3, epochs=2), tmp_path / "whole")
    with memory_for(3):
        result = run(make_spec(batch_size=4, examples=3, epochs=2), tmp_path / "run")
    assert len(result.notes) == 1
    assert result.metrics["eval_loss"] == pytest.approx(whole.metrics["eval_loss"], rel=1e-2)
