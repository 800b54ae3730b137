"""Runs on a real local Ray: several at once, a killed worker, and errors that stay with their run."""

import errno
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry.errors import BaseInvalid
from swapmeet_training import (
    DataError,
    FineTune,
    Progress,
    Resources,
    RunFailed,
    SpecError,
    StorageFull,
    WorkerLost,
    run,
)

ray = pytest.importorskip("ray")

MakeSpec = Callable[..., FineTune]


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def train(*args: Any, **kwargs: Any) -> Any:
    from swapmeet_training.attempts.ray_driver import train_on_ray

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


def test_what_ray_raises_becomes_ours() -> None:
    from swapmeet_training.attempts.ray_driver import _error

    lost = _error("acme/dates", ray.train.WorkerGroupError("died", {0: ray.exceptions.RayActorError()}))
    assert isinstance(lost, WorkerLost)
    assert str(lost).startswith("acme/dates: its worker died")
    failed = _error("acme/dates", ray.train.WorkerGroupError("raised", {0: RunFailed("acme/dates failed: odd")}))
    assert isinstance(failed, RunFailed)
    assert str(failed) == "acme/dates failed: odd"
    assert isinstance(_error("acme/dates", OSError(errno.ENOSPC, "No space left on device")), StorageFull)


@pytest.mark.slow
def test_a_killed_worker_goes_on_from_its_checkpoint_and_nothing_touches_the_others(
    local_ray: None, make_spec: MakeSpec, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    storage = tmp_path / "runs"
    victim = make_spec(name="acme/victim", epochs=20, save_every=5, validation=None)
    other = make_spec(name="acme/other", epochs=40, save_every=5)
    bad = [
        make_spec(name="acme/data", data=write_jsonl("bad.jsonl", {"messages": []})),
        make_spec(name="acme/base", base=tmp_path / "nowhere"),
        make_spec(name="acme/target", target_modules=["nothing"]),
    ]
    told: list[Progress] = []
    killed: list[int] = []
    workers: set[int] = set()

    def follow(progress: Progress) -> None:
        told.append(progress)
        if progress.name == other.name:
            workers.add(worker_of(storage, other.name))
        elif progress.step >= 20 and not killed:
            killed.append(worker_of(storage, victim.name))
            os.kill(killed[0], signal.SIGKILL)

    outcomes = train([victim, *bad, other], storage, resources=Resources(cpus=0.66), on_progress=follow)

    kinds = [type(outcome.error) for outcome in outcomes]
    assert kinds == [type(None), DataError, BaseInvalid, SpecError, type(None)]
    assert "line 1: messages must be a list" in str(outcomes[1].error)
    assert [outcome.adapter is None for outcome in outcomes] == [False, True, True, True, False]
    assert not list(storage.glob("acme--target-*/checkpoint-*"))

    assert len(killed) == 1
    assert outcomes[0].resumed_from >= 5, "it began again instead of going on"
    assert max(progress.step for progress in told if progress.name == victim.name) == 60
    alone = run(victim, tmp_path / "alone")
    assert weights(outcomes[0].adapter) == weights(alone.adapter), "it ended elsewhere than one never killed"
    assert not list(storage.glob("*/checkpoint-5")), "Ray keeps no old checkpoints"

    assert len(workers) == 1, "the other run was started again"
    assert outcomes[4].resumed_from == 0
    steps = [progress.step for progress in told if progress.name == other.name and not progress.evaluation]
    assert steps == list(range(1, 121))
    assert outcomes[4].metrics["eval_loss"] > 0
    assert outcomes[4].trained_tokens > 0
