"""Runs on a real local Ray: several at once, a killed worker, and errors that stay with their run."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry.errors import BaseInvalid
from swapmeet_training import DataError, FineTune, Progress, Resources, RunFailed, SpecError, WorkerLost, run

ray = pytest.importorskip("ray")

MakeSpec = Callable[..., FineTune]


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def train(*args: Any, **kwargs: Any) -> Any:
    from swapmeet_training.ray_driver import train_on_ray

    return train_on_ray(*args, **kwargs)


def weights(adapter: Path) -> bytes:
    return (adapter / "adapter_model.safetensors").read_bytes()


def worker_of(storage: Path, name: str) -> int:
    """The process that wrote a run's newest progress."""
    (events,) = storage.glob(f"{name.replace('/', '--')}-*/progress.jsonl")
    return int(json.loads(events.read_text().splitlines()[-1])["pid"])


def test_ray_must_run(make_spec: MakeSpec, tmp_path: Path) -> None:
    if ray.is_initialized():
        pytest.skip("another module's Ray is still up")
    with pytest.raises(RunFailed, match=r"Ray is not running\. Call ray\.init\(\) first"):
        train([make_spec()], tmp_path)


def test_what_the_cluster_can_not_hold_is_refused(local_ray: None, make_spec: MakeSpec, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="needs 3 CPUs and 0 GPUs, and the cluster has 2 and 0"):
        train([make_spec()], tmp_path, resources=Resources(cpus=3))
    with pytest.raises(SpecError, match="needs 1 CPUs and 1 GPUs"):
        train([make_spec()], tmp_path, resources=Resources(gpus=1))
    with pytest.raises(SpecError, match="Two of the fine-tunes are the same"):
        train([make_spec(), make_spec()], tmp_path)


@pytest.mark.slow
def test_killed_worker_goes_on_from_its_checkpoint_and_others_never_stop(
    local_ray: None, make_spec: MakeSpec, tmp_path: Path
) -> None:
    storage = tmp_path / "runs"
    victim = make_spec(name="acme/victim", epochs=20, save_every=5, validation=None)
    other = make_spec(name="acme/other", epochs=40, save_every=5, validation=None)
    told: dict[str, list[Progress]] = {victim.name: [], other.name: []}
    killed: list[int] = []
    workers: set[int] = set()

    def follow(progress: Progress) -> None:
        told[progress.name].append(progress)
        if progress.name == other.name:
            workers.add(worker_of(storage, other.name))
        elif progress.step >= 20 and not killed:
            killed.append(worker_of(storage, victim.name))
            os.kill(killed[0], signal.SIGKILL)

    outcomes = train([victim, other], storage, resources=Resources(cpus=1), on_progress=follow)

    assert [outcome.error for outcome in outcomes] == [None, None]
    assert len(killed) == 1
    assert outcomes[0].resumed_from >= 5, "it began again instead of going on"
    assert outcomes[1].resumed_from == 0
    assert len(workers) == 1, "the other run was started again"
    assert [progress.step for progress in told[other.name]] == list(range(1, 121))
    assert told[victim.name][-1].step == 60
    alone = run(victim, tmp_path / "alone")
    assert outcomes[0].adapter is not None
    assert weights(outcomes[0].adapter) == weights(alone.adapter), "it ended elsewhere than one never killed"
    assert not list(storage.glob("*/checkpoint-5")), "Ray keeps no old checkpoints"


@pytest.mark.slow
def test_a_failure_stays_with_its_run_and_is_told(
    local_ray: None, make_spec: MakeSpec, write_jsonl: Callable[..., Path], tiny_llama: Path, tmp_path: Path
) -> None:
    storage = tmp_path / "runs"
    odd = shutil.copytree(tiny_llama, tmp_path / "odd")
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps(config | {"intermediate_size": 320}))
    specs = [
        make_spec(name="acme/data", data=write_jsonl("bad.jsonl", {"messages": []})),
        make_spec(name="acme/base", base=tmp_path / "nowhere"),
        make_spec(name="acme/target", target_modules=["nothing"]),
        make_spec(name="acme/lost", epochs=1000, validation=None),
        make_spec(name="acme/odd", base=odd),
        make_spec(name="acme/good"),
    ]
    killed: list[int] = []

    def follow(progress: Progress) -> None:
        if progress.name == "acme/lost" and not killed:
            killed.append(worker_of(storage, progress.name))
            os.kill(killed[0], signal.SIGKILL)

    outcomes = train(specs, storage, resources=Resources(cpus=0.66), max_failures=0, on_progress=follow)

    kinds = [type(outcome.error) for outcome in outcomes]
    assert kinds == [DataError, BaseInvalid, SpecError, WorkerLost, RunFailed, type(None)]
    assert [outcome.adapter is None for outcome in outcomes] == [True, True, True, True, True, False]
    assert "line 1: messages must be a list" in str(outcomes[0].error)
    assert "acme/lost: its worker died" in str(outcomes[3].error)
    assert str(outcomes[4].error).startswith("acme/odd failed: ")
    assert outcomes[5].metrics["eval_loss"] > 0
    assert outcomes[5].trained_tokens > 0
    again = train([specs[5]], storage)
    assert again[0].resumed_from == 6, "a finished run is not trained again"
