"""Runs on a real local Ray: several at once, a killed worker, and errors that stay with their run."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry.errors import BaseInvalid
from swapmeet_training import DataError, FineTune, Progress, Resources, RunFailed, SpecError, run

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


def worker_of(storage: Path, name: str) -> int:
    """The process that wrote a run's newest progress."""
    (events,) = storage.glob(f"{name.replace('/', '--')}-*/progress.jsonl")
    return int(json.loads(events.read_text().splitlines()[-1])["pid"])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_worker_goes_on_from_its_checkpoint_and_others_never_stop(
    local_ray: None, make_spec: MakeSpec, tmp_path: Path
) -> None:
    storage = tmp_path / "runs"
    victim = make_spec(name="acme/victim", epochs=60, save_every=5, validation=None)
    other = make_spec(name="acme/other", epochs=60, save_every=5, validation=None)
    told: dict[str, list[Progress]] = {victim.name: [], other.name: []}
    killed: list[int] = []
    workers: set[int] = set()

    def follow(progress: Progress) -> None:
        told[progress.name].append(progress)
        if progress.name == other.name:
            workers.add(worker_of(storage, other.name))
        elif progress.step == 40 and not killed:
            killed.append(worker_of(storage, victim.name))
            os.kill(killed[0], signal.SIGKILL)

    outcomes = train([victim, other], storage, resources=Resources(cpus=1), on_progress=follow)

    assert [outcome.error for outcome in outcomes] == [None, None]
    assert len(killed) == 1
    assert outcomes[0].resumed_from >= 5
    assert outcomes[0].resumed_from % 5 == 0
    assert outcomes[1].resumed_from == 0
    assert len(workers) == 1, "the other run was started again"
    assert [p.step for p in told[other.name]] == list(range(1, 181))
    assert told[victim.name][-1].step == 180
    alone = run(victim, tmp_path / "alone")
    assert outcomes[0].adapter is not None
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in (outcomes[0].adapter, alone.adapter)]
    assert weights[0] == weights[1], "the restarted run ended elsewhere than one that was never killed"
