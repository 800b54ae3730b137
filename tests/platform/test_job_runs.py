"""Jobs on a real local Ray, with a real base, registry and storage: workers, actors and leaders are killed."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from swapmeet.database import Database
from swapmeet.database.migrations import upgrade
from swapmeet.database.tables import JobRow, TenantRow, UsageRow
from swapmeet.jobs import Jobs
from swapmeet.jobs.logs import log_of
from swapmeet.queue.scheduler import Scheduler
from swapmeet.settings import Settings
from swapmeet_registry import Registry, open_store
from swapmeet_registry.bases import BaseLibrary
from swapmeet_training.attempts.apart import SOCKET
from swapmeet_training.attempts.telling import namespace
from swapmeet_training.attempts.warm import keep_warm

ray = pytest.importorskip("ray")

STEPS = 240
LIMIT = 150.0


class Platform:
    """A platform without its gateway."""

    def __init__(self, home: Path, base: Path, job_row: Callable[..., JobRow], keep_file: Callable[..., None]) -> None:
        self.settings, self.job_row = Settings(home=home), job_row
        BaseLibrary(self.settings.folder).add(str(base))
        self.database = Database(self.settings.database_url)
        upgrade(self.database)
        self.database.write(lambda session: session.merge(TenantRow(name="acme")))
        self.jobs = Jobs(self.database)
        self.registry = Registry(self.settings.registry_url)
        self.store = open_store(self.settings.storage_url)
        self.leader, self.stop = None, threading.Event()
        self.over = threading.Event()
        self.warm = threading.Thread(target=keep_warm, args=(self.settings.folder, self.over))
        self.warm.start()
        lines = [
            {"messages": [{"role": "user", "content": f"{day} March"}, {"role": "assistant", "content": f"03-{day}"}]}
            for day in range(16)
        ]
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        keep_file(self.database, self.store, "file-1", data)

    def job(self, adapter: str = "acme/dates", **settings: Any) -> str:
        settings = {"batch_size": 4, "rank": 2, "epochs": STEPS / 4, "save_every": 20} | settings
        resources = {"cpus": 0.5, "gpus": 0, "memory": 0}
        return self.jobs.create(self.job_row(adapter=adapter, settings=settings, resources=resources)).id

    def lead(self) -> None:
        """A leader of its own thread; the one before stops where it stands, as if it were killed."""
        if self.leader is not None:
            self.stop.set()
            self.leader.join()
        self.stop = threading.Event()
        scheduler = Scheduler(self.settings, self.database)
        self.leader = threading.Thread(target=_serve, args=(scheduler, self.stop))
        self.leader.start()

    def row(self, job: str) -> JobRow:
        return self.jobs.get("acme", job)

    def wait(self, job: str, done: Callable[[JobRow], Any]) -> JobRow:
        deadline = time.monotonic() + LIMIT
        while not done(row := self.row(job)):
            assert time.monotonic() < deadline, (row.state, row.step, self.names(job))
            assert row.state != "failed" or done(row), row.error
            time.sleep(0.1)
        return row

    def names(self, job: str) -> list[str]:
        return [row.name for row in reversed(self.jobs.events("acme", job, limit=1000)[0])]

    def actor(self, job: str) -> Any:
        return ray.get_actor(job, namespace(self.settings.storage_url))

    def close(self) -> None:
        self.over.set()
        self.stop.set()
        self.warm.join()
        if self.leader is not None:
            self.leader.join()
        self.database.close()


def _serve(scheduler: Scheduler, stop: threading.Event) -> None:
    """As `Scheduler.serve`, but its end is sudden: nothing is parked."""
    with scheduler.lease:
        while not stop.wait(0.3):
            scheduler._round()


@pytest.fixture(scope="module")
def platform(
    tiny_llama: Path,
    tmp_path_factory: pytest.TempPathFactory,
    job_row: Callable[..., JobRow],
    keep_file: Callable[..., None],
) -> Iterator[Platform]:
    platform = Platform(tmp_path_factory.mktemp("home"), tiny_llama, job_row, keep_file)
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    while not (platform.settings.folder / "cache" / SOCKET).exists():  # imports once, not in every run
        assert platform.warm.is_alive()
        time.sleep(0.1)
    platform.lead()
    yield platform
    platform.close()
    ray.shutdown()


def processes(name: str) -> dict[int, int]:
    """Ray's processes on this machine whose title has a word, with their parents."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            parent = parent_of(int(folder.name))
        except (OSError, UnicodeDecodeError):
            continue
        if name in title and _ours(parent):
            found[int(folder.name)] = parent
    return found


def runs() -> list[int]:
    """The processes of runs, which are forks of the warm one."""
    warm = processes("attempts.warm")
    return [number for number, parent in warm.items() if parent in warm]


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def _ours(process: int) -> bool:
    """Whether a process descends from this one: others' Rays run beside this test's."""
    while process > 1:
        if process == os.getpid():
            return True
        try:
            process = parent_of(process)
        except OSError:
            return False
    return False


def weights(platform: Platform, model: str, folder: Path) -> bytes:
    platform.registry.pull(model, folder)
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_runs_end_as_if_nobody_had_been_killed(platform: Platform, tmp_path: Path) -> None:
    """One job in peace; one whose worker, then leader, then actor is killed. Their adapters are equal, bit for bit."""
    job = platform.job()
    platform.wait(job, lambda row: row.step >= 12)
    (worker,) = runs()
    os.kill(worker, signal.SIGKILL)
    row = platform.wait(job, lambda row: row.attempt == 2 and row.failures == 0)
    before = row.step
    calm = platform.job("acme/calm")

    platform.lead()  # the leader before is gone; the new one finds the same attempt
    row = platform.wait(job, lambda row: row.step > before)
    assert (row.attempt, row.state) == (2, "running")

    ray.kill(platform.actor(job))
    row = platform.wait(job, lambda row: row.state == "succeeded")
    assert row.attempt == 3
    assert row.fine_tuned_model == "acme/dates:1"
    peaceful = platform.wait(calm, lambda row: row.state == "succeeded")
    assert (peaceful.attempt, peaceful.fine_tuned_model) == (1, "acme/calm:1")
    assert "checkpoint-240" in platform.names(calm)
    names = platform.names(job)
    assert [name for name in names if name.startswith("step-")] == [f"step-{n + 1}" for n in range(STEPS)]
    assert {"lost-1", "lost-2", "began-2", "began-3", "checkpoint-20", "checkpoint-240", "succeeded"} <= set(names)
    assert weights(platform, "acme/calm:1", tmp_path / "calm") == weights(platform, "acme/dates:1", tmp_path / "killed")
    used = platform.database.read(lambda session: list(session.scalars(select(UsageRow))))
    trained = {
        one: sum(use.amount for use in used if use.subject == one and use.kind == "training_tokens")
        for one in (calm, job)
    }
    assert trained[calm] == trained[job] == row.trained_tokens
    log = list(log_of(platform.store, row))
    assert {"--- attempt 1 ---", "--- attempt 3 ---"} <= set(log)
    assert any("its worker process died" in line for line in log)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_runs_are_paused_cancelled_and_refused(platform: Platform) -> None:
    paused, cancelled = platform.job(epochs=1000), platform.job(epochs=1000)
    bad = platform.job(target_modules=["nothing"])
    platform.wait(paused, lambda row: row.step >= 3)
    platform.wait(cancelled, lambda row: row.step >= 3)
    platform.jobs.pause("acme", paused)
    began = time.monotonic()
    platform.jobs.cancel("acme", cancelled)
    platform.wait(paused, lambda row: row.state == "paused")
    while len(runs()) > 1:
        assert time.monotonic() - began < 30, "cancelled runs stop within seconds"
        time.sleep(0.1)
    parked = platform.row(paused)
    assert parked.checkpoint is not None
    assert parked.checkpoint.endswith(f"checkpoint-{parked.step}")
    platform.jobs.resume("acme", paused)
    row = platform.wait(paused, lambda row: row.step > parked.step)
    assert (row.attempt, row.failures) == (2, 0)
    assert f"step-{parked.step + 1}" in platform.names(paused)
    platform.jobs.cancel("acme", paused)
    row = platform.wait(bad, lambda row: row.state == "failed")
    assert row.error is not None
    assert (row.error["code"], row.attempt) == ("invalid_hyperparameters", 1)
    assert "nothing" in row.error["message"]
    deadline = time.monotonic() + 30
    while runs() or processes("ray::Attempt"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
