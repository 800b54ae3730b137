"""A sweep on a real local Ray: its jobs train, a leader is gone in between, the better one is published."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swapmeet.database import Database
from swapmeet.database.migrations import upgrade
from swapmeet.database.tables import FileRow, TenantRow
from swapmeet.files import Files
from swapmeet.fine_tuning import settle
from swapmeet.fine_tuning.models import Models
from swapmeet.fine_tuning.rows import JobRequests
from swapmeet.ids import new_id
from swapmeet.queue.scheduler import Scheduler
from swapmeet.settings import Settings
from swapmeet.sweeps.request import parse_sweep
from swapmeet.sweeps.rows import rows_of
from swapmeet.sweeps.sweeps import Sweeps
from swapmeet_registry import Registry, open_store
from swapmeet_registry.bases import BaseLibrary

ray = pytest.importorskip("ray")


@pytest.fixture
def ray_here() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def upload(database: Database, settings: Settings, lines: range) -> str:
    text = "".join(json.dumps({"prompt": f"{line} March", "completion": f"03-{line}"}) + "\n" for line in lines)
    digest, name = hashlib.sha256(text.encode()).hexdigest(), new_id("file-")
    values: dict[str, Any] = {"filename": "dates.jsonl", "purpose": "fine-tune", "bytes": len(text), "sha256": digest}
    report = {"form": "completion", "examples": len(lines)}
    row = FileRow(id=name, tenant="acme", status="processed", report=report, **values)
    database.write(lambda session: session.add(row))
    open_store(settings.storage_url).put(f"files/{name}", text.encode(), digest)
    return name


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_the_better_of_two_runs_is_published(tiny_llama: Path, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    BaseLibrary(settings.folder).add(str(tiny_llama))
    database, registry = Database(settings.database_url), Registry(settings.registry_url)
    upgrade(database)
    database.write(lambda session: session.add(TenantRow(name="acme")))
    body = {
        "model": "tiny-llama",
        "training_file": upload(database, settings, range(16)),
        "validation_file": upload(database, settings, range(16, 20)),
        "lora": {"name": "dates", "rank": 2, "resources": {"cpus": 0.5}},
        "sweep": {"grid": {"learning_rate": [1e-7, 3e-2]}},
        "hyperparameters": {"n_epochs": 4},
    }
    requests = JobRequests(
        Files(database, open_store(settings.storage_url)), Models(registry, lambda: ["tiny-llama"]), settings
    )
    sweeps = Sweeps(database)
    made = sweeps.create(rows_of(requests, parse_sweep(body), "acme", "key-1", lambda _: True))
    stop = threading.Event()

    def lead() -> None:
        """As `Scheduler.serve`, but its end is sudden."""
        scheduler = Scheduler(settings, database, settle=settle)
        with scheduler.lease:
            while not stop.wait(0.3):
                scheduler._round()

    until, changed = time.monotonic() + 240, False
    leader = threading.Thread(target=lead)
    leader.start()
    try:
        while (found := sweeps.get("acme", made.row.id)).row.cleared_at is None:
            assert time.monotonic() < until, [(run.state, run.step, run.error) for run in found.runs]
            if not changed and any(run.step for run in found.runs):
                stop.set()
                leader.join()
                stop.clear()
                leader, changed = threading.Thread(target=lead), True
                leader.start()
            time.sleep(0.1)
    finally:
        stop.set()
        leader.join()
    idle, learning = found.runs
    assert (found.row.state, found.row.best, found.row.fine_tuned_model) == ("succeeded", learning.job, "acme/dates:1")
    assert learning.metrics["valid_loss"] < idle.metrics["valid_loss"]
    assert learning.metrics["train_loss"] < idle.metrics["train_loss"]
    assert {"valid_accuracy"} < set(idle.metrics)
    (version,) = registry.show("acme/dates").versions
    assert registry.manifest(version).run == learning.job
    left = {key.rpartition("/")[2] for key in open_store(settings.storage_url).list(f"runs/{idle.job}/")}
    assert left == {"000001.txt", "losses.jsonl", "examples.json"}
    database.close()
