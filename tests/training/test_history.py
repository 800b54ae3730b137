"""What a run leaves to read, the order of its examples, and its learning rates."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapmeet_registry.fingerprint import Fingerprint
from swapmeet_training import FineTune, Progress, Row, run
from swapmeet_training.loop.history import COLUMNS, Losses, Metrics
from swapmeet_training.loop.order import Order

pytest.importorskip("torch")

MakeSpec = Callable[..., FineTune]


def test_metrics_have_a_row_per_step_and_empty_cells(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "run")
    metrics.add(1, 2.5, {"token_accuracy": 0.25}, {})
    metrics.add(2, 2.0, {"token_accuracy": 0.5}, {"eval_loss": 3.0, "eval_token_accuracy": 0.125})
    metrics.add(3, 0.6, {"reward_accuracy": 1.0}, {"eval_loss": 0.5, "eval_reward_accuracy": 1.0})
    assert (tmp_path / "run" / "metrics.csv").read_text().splitlines() == [
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy",
        "1,2.5,0.25,,",
        "2,2.0,0.5,3.0,0.125",
        "3,0.6,1.0,0.5,",
    ]
    again = Metrics(tmp_path / "elsewhere", metrics.text())
    again.add(4, 1.0, {}, {})
    assert again.text() == metrics.text() + "4,1.0,,,\n"


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]


def test_losses_of_every_epoch_and_the_worst_of_the_last(tmp_path: Path) -> None:
    losses = Losses([3, 9, 3], epochs=2)
    losses.add(9, 0, 4.0, 7)
    losses.add(3, 0, 2.5, 4)
    losses.add(3, 0, 0.0, 1)
    losses.add(3, 1, 2.5, 5)
    losses.write(tmp_path)
    assert rows(tmp_path) == [
        {"line": 3, "epoch": 1, "loss": 2.0, "tokens": 5},
        {"line": 9, "epoch": 1, "loss": 4.0, "tokens": 7},
        {"line": 3, "epoch": 2, "loss": 2.5, "tokens": 5},
    ]
    assert losses.worst() == (Row(9, 1, 4.0, 7), Row(3, 2, 2.5, 5))
    assert losses.worst(1) == (Row(9, 1, 4.0, 7),)


def test_many_losses_are_kept_once_per_line(tmp_path: Path) -> None:
    losses = Losses([1, 2], epochs=1000, max_rows=10)
    for epoch in range(1000):
        losses.add(1, epoch, float(epoch), 5)
    losses.write(tmp_path)
    assert rows(tmp_path) == [{"line": 1, "epoch": 1000, "loss": 999.0, "tokens": 5}]


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_every_epoch_takes_each_unit_once_in_another_order(units: int, per_step: int, seed: int) -> None:
    order = Order(range(units), per_step, seed)
    epochs = [
        [unit for place in range(order.steps_per_epoch) for unit in order.at(epoch * order.steps_per_epoch + place)]
        for epoch in range(3)
    ]
    assert all(sorted(epoch) == list(range(units)) for epoch in epochs)
    assert units < 12 or epochs[0] != epochs[1] != epochs[2]
    last = 3 * order.steps_per_epoch - 1
    assert Order(range(units), per_step, seed).at(last) == order.at(last), "the step alone says what it takes"
    assert order.epoch(last) == 2


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("total", [1, 2, 10, 1000])
def test_no_step_has_a_rate_of_zero(schedule: str, total: int) -> None:
    from swapmeet_training.loop.optimization import learning_rate

    spec = FineTune(
        name="acme/rates",
        base=Path("base"),
        base_fingerprint=Fingerprint(name="base", weights="sha256:0", tokenizer="sha256:0"),
        data=Path("data.jsonl"),
        schedule=schedule,
        warmup_ratio=0.1,
    )
    rates = [learning_rate(spec, step, total) for step in range(total)]
    rising = total // 10
    assert all(0 < rate <= 2e-4 for rate in rates)
    assert rates[: rising + 1] == sorted(rates[: rising + 1])
    assert rates[rising] == 2e-4
    assert rates[rising:] == sorted(rates[rising:], reverse=True)
    assert schedule != "constant" or rates[-1] == 2e-4


def test_a_run_tells_and_writes_the_same(make_spec: MakeSpec, tmp_path: Path) -> None:
    told: list[Progress] = []
    result = run(make_spec(), tmp_path / "run", report=told.append)
    with (tmp_path / "run" / "metrics.csv").open() as stream:
        read = list(csv.DictReader(stream))
    assert tuple(read[0]) == COLUMNS
    steps = [progress for progress in told if not progress.evaluation]
    assert [int(row["step"]) for row in read] == [progress.step for progress in steps] == [1, 2, 3, 4, 5, 6]
    for row, progress in zip(read, steps, strict=True):
        assert float(row["train_loss"]) == progress.loss
        assert float(row["train_accuracy"]) == progress.metrics["token_accuracy"]
    evaluated = {progress.step: progress.evaluation for progress in told if progress.evaluation}
    assert {int(row["step"]) for row in read if row["valid_loss"]} == evaluated.keys()
    assert float(read[5]["valid_loss"]) == evaluated[6]["eval_loss"]
    assert float(read[5]["valid_mean_token_accuracy"]) == evaluated[6]["eval_token_accuracy"]
    assert [progress.metrics["epoch"] for progress in steps] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    assert all(progress.metrics["gradient_norm"] > 0 < progress.metrics["learning_rate"] for progress in steps)
    assert told[-1].trained_tokens == result.trained_tokens
    losses = rows(tmp_path / "run")
    assert sorted((row["line"], row["epoch"]) for row in losses) == [(n, e) for n in range(1, 13) for e in (1, 2)]
    first = [row for row in losses if row["epoch"] == 1]
    mean = sum(row["loss"] * row["tokens"] for row in first) / sum(row["tokens"] for row in first)
    step_means = [progress.loss for progress in steps[:3]]
    assert min(step_means) < mean < max(step_means)


def test_a_wrong_line_is_among_the_worst(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(examples=24, epochs=6, batch_size=8)
    lines = spec.data.read_text().splitlines()
    wrong = json.loads(lines[6])
    wrong["messages"][1]["content"] = "zq%"
    lines[6] = json.dumps(wrong)
    spec.data.write_text("\n".join(lines))
    result = run(spec, tmp_path / "run")
    assert result.worst[0].line == 7
    assert result.worst[0].epoch == 6
    assert len(result.worst) == 20


def test_the_best_evaluated_adapter_is_published_and_waiting_ends(make_spec: MakeSpec, tmp_path: Path) -> None:
    settings = {"learning_rate": 0.3, "eval_every": 1, "save_every": 1, "epochs": 4}
    told: list[Progress] = []
    result = run(make_spec(early_stopping=2, **settings), tmp_path / "best", report=told.append, keep=None)
    losses = {progress.step: progress.evaluation["eval_loss"] for progress in told if progress.evaluation}
    best = min(losses, key=losses.__getitem__)
    assert result.metrics["best_step"] == best
    assert result.metrics["eval_loss"] == losses[best]
    assert result.steps == best + 2 < 12
    published = (result.adapter / "adapter_model.safetensors").read_bytes()
    of_best = tmp_path / "best" / f"checkpoint-{best}" / "adapter_model.safetensors"
    assert published == of_best.read_bytes()
    last = run(make_spec(keep_best=False, **settings), tmp_path / "last", keep=None)
    assert last.steps == 12
    assert "best_step" not in last.metrics
    of_last = tmp_path / "last" / "checkpoint-12" / "adapter_model.safetensors"
    assert (last.adapter / "adapter_model.safetensors").read_bytes() == of_last.read_bytes()


def test_so_many_checkpoints_stay_as_wanted(make_spec: MakeSpec, tmp_path: Path) -> None:
    saved: list[str] = []

    def note(folder: Path) -> None:
        assert (folder / "swapmeet.json").is_file()
        saved.append(folder.name)

    run(make_spec(save_every=1, validation=None), tmp_path / "run", keep=3, checkpointed=note)
    assert saved == [f"checkpoint-{step}" for step in range(1, 7)]
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint*")) == saved[3:]
