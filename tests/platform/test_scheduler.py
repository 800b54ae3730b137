"""The queue's rounds over a cluster that the test plays: whoever dies, one job, one adapter, every event once."""

import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.migrations import upgrade
from swapmeet.database.tables import CheckpointRow, FileRow, JobRow, TenantRow, UsageRow
from swapmeet.database.tables.base import now
from swapmeet.errors import LeaseLost, PlatformError
from swapmeet.jobs import Jobs
from swapmeet.jobs.publishing import checkpoint_name
from swapmeet.queue import placing, scheduler
from swapmeet.queue.dispatcher import Machine
from swapmeet.queue.recording import MOST_FAILURES
from swapmeet.queue.records import Decision
from swapmeet.queue.scheduler import Scheduler
from swapmeet.settings import Settings
from swapmeet.tenancy.stocktaking import Stocktaking, note_published
from swapmeet_registry import NotFound, Provenance, Registry, open_store
from swapmeet_registry.bases import BaseLibrary
from swapmeet_registry.store_backend import StoreBackend
from swapmeet_registry.upkeep.collection import collect
from swapmeet_training.attempts.run_storage import RunStorage
from swapmeet_training.attempts.telling import (
    Answer,
    Began,
    Failed,
    Finished,
    Noted,
    Order,
    Saved,
    Stepped,
    Stopped,
    Telling,
)
from swapmeet_training.progress import Progress

DATA = b'{"messages": []}\n'


@dataclass
class Attempt:
    """What the actor of one attempt would know."""

    order: Order
    told: list[tuple[int, Telling]] = field(default_factory=list)
    parked: bool = False

    def tell(self, *told: Telling) -> None:
        for each in told:
            self.told.append((len(self.told) + 1, each))


class Cluster:
    """A cluster whose attempts do what the test says."""

    def __init__(self) -> None:
        self.nodes = [Machine("node-1", 4.0, 0.0, 1 << 30, 4.0, 1 << 30)]
        self.known = {"node-1"}
        self.running: dict[str, Attempt] = {}
        self.started: list[Order] = []
        self.ended: list[str] = []
        self.mute: set[str] = set()

    def machines(self) -> list[Machine]:
        return self.nodes

    def knows(self, node: str) -> bool:
        return node in self.known

    def attempts(self) -> set[str]:
        return set(self.running)

    def start(self, order: Order) -> None:
        assert order.job not in self.running, "it runs twice"
        self.running[order.job] = Attempt(order)
        self.started.append(order)

    def poll(self, heard: Mapping[str, int]) -> dict[str, Answer]:
        return {
            job: Answer(one.order.attempt, tuple(each for each in one.told if each[0] > heard[job]))
            for job, one in self.running.items()
            if job in heard and job not in self.mute
        }

    def park(self, job: str) -> None:
        if job in self.running:
            self.running[job].parked = True

    def end(self, job: str) -> None:
        if self.running.pop(job, None):
            self.ended.append(job)


class World:
    """A platform with one tenant, one base and files, on a cluster of the test's."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        adapter: Path,
        job_row: Callable[..., JobRow],
        keep_file: Callable[..., None],
    ) -> None:
        self.settings, self.database, self.adapter = settings, database, adapter
        self.job_row, self.keep_file = job_row, keep_file
        self.cluster = Cluster()
        self.announced: list[tuple[str, str]] = []
        self.jobs = Jobs(database, self.announce)
        self.registry = Registry(settings.registry_url)
        self.store = open_store(settings.storage_url)
        self.leaders: list[Scheduler] = []
        database.write(lambda session: session.merge(TenantRow(name="acme")))
        self.file("file-1")

    def announce(self, session: Session, tenant: str, kind: str, job: str) -> None:
        self.announced.append((kind, job))

    def file(self, name: str, status: str = "processed", details: str | None = None) -> None:
        self.keep_file(self.database, self.store, name, DATA, status=status, status_details=details)

    def job(self, **changes: Any) -> str:
        resources = {"cpus": 1, "gpus": 0, "memory": 0}
        values: dict[str, Any] = {"settings": {"rank": 2}, "resources": resources, "plan": {"seconds": 100}}
        return self.jobs.create(self.job_row(**values | changes)).id

    def leader(self) -> Scheduler:
        """A new process that leads from now on, whoever did before."""
        for old in self.leaders:
            old.lease.release()
        new = Scheduler(self.settings, self.database, dispatcher=self.cluster, announce=self.announce)
        self.leaders.append(new)
        assert new.lease.hold()
        return new

    def row(self, job: str) -> JobRow:
        return self.jobs.get("acme", job)

    def rounds(self, leader: Scheduler, done: Callable[[], Any]) -> None:
        """Rounds until something is so; what was put off because of a failure is tried at once."""
        deadline = time.monotonic() + 20
        while not done():
            assert time.monotonic() < deadline, [self.row(job).state for job in self.cluster.running]
            assert leader.lease.hold()
            leader.run_once()
            self.database.write(self.hurry)
            time.sleep(0.005)

    @staticmethod
    def hurry(session: Session) -> None:
        for row in session.scalars(select(JobRow).where(JobRow.not_before.is_not(None))):
            row.not_before = None

    def running(self, leader: Scheduler, job: str) -> Attempt:
        self.rounds(leader, lambda: job in self.cluster.running)
        return self.cluster.running[job]

    def save(self, attempt: Attempt, step: int, best: int | None = None, loss: float = 1.0) -> Saved:
        """A checkpoint, kept as a worker does."""
        runs = RunStorage(self.store, attempt.order.job)
        key = runs.key(attempt.order.attempt, f"checkpoint-{step}")
        metrics = {"step": float(step), "loss": loss, "eval_loss": loss}
        runs.keep(key, self.adapter, {"metrics": metrics, "best": None, "best_loss": None}, self.adapter / "README.md")
        return Saved(key, metrics, runs.key(attempt.order.attempt, f"checkpoint-{best}") if best else None)

    def finish(self, attempt: Attempt, steps: int) -> Finished:
        runs = RunStorage(self.store, attempt.order.job)
        key = runs.key(attempt.order.attempt, "adapter")
        runs.keep(key, self.adapter, {})
        return Finished(key, {"loss": 0.5}, steps, 100 * steps)

    def messages(self, job: str) -> list[str]:
        return [row.message for row in reversed(self.jobs.events("acme", job, limit=1000)[0])]

    def names(self, job: str) -> list[str]:
        return [row.name for row in reversed(self.jobs.events("acme", job, limit=1000)[0])]

    def close(self) -> None:
        for leader in self.leaders:
            leader._chores.close()


def step(number: int, total: int = 4) -> Stepped:
    return Stepped(Progress("acme/dates", number, total, 1 / number, 10.0, float(total - number), {}, {}, 100 * number))


@pytest.fixture(scope="session")
def adapter(tiny_llama: Path, random_lora: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from swapmeet_registry.fingerprint import fingerprint

    folder = random_lora(tiny_llama, tmp_path_factory.mktemp("lora") / "adapter", rank=2)
    Provenance(base=fingerprint(tiny_llama, "tiny-llama"), dataset="sha256:" + "a" * 64).write(folder)
    return folder


@pytest.fixture
def make_world(
    adapter: Path, tiny_llama: Path, tmp_path: Path, job_row: Callable[..., JobRow], keep_file: Callable[..., None]
) -> Callable[[Database], World]:
    def make(database: Database) -> World:
        settings = Settings(home=tmp_path / "home")
        BaseLibrary(settings.folder).add(str(tiny_llama))
        return World(settings, database, adapter, job_row, keep_file)

    return make


@pytest.fixture
def world(database: Database, make_world: Callable[[Database], World]) -> Iterator[World]:
    world = make_world(database)
    yield world
    world.close()


@pytest.fixture
def local_world(make_world: Callable[[Database], World], tmp_path: Path) -> Iterator[World]:
    """For what does not hang on the database's kind."""
    database = Database(f"sqlite:///{tmp_path}/swapmeet.db")
    upgrade(database)
    world = make_world(database)
    yield world
    world.close()
    database.close()


def test_a_job_from_its_files_to_its_adapter(world: World) -> None:
    parent = f"acme/old@sha256:{'b' * 64}"
    job, leader = world.job(parent=parent), world.leader()
    attempt = world.running(leader, job)
    order = attempt.order
    assert (order.attempt, order.node, order.parent, order.checkpoint, order.step) == (1, "node-1", parent, None, 0)
    assert (order.data.key, order.data.filename, order.settings) == ("files/file-1", "dates.jsonl", {"rank": 2})
    attempt.tell(Began(None), step(1), step(2))
    world.rounds(leader, lambda: world.row(job).step == 2)
    row = world.row(job)
    assert (row.state, row.total_steps, row.trained_tokens, row.wanted) == ("running", 4, 200, "run")
    assert row.estimated_finish is not None
    assert 0 < (row.estimated_finish - now()).total_seconds() < 3

    attempt.tell(world.save(attempt, 2))
    world.rounds(leader, lambda: world.jobs.checkpoints("acme", job)[0])
    (checkpoint,) = world.jobs.checkpoints("acme", job)[0]
    assert checkpoint.model.startswith("acme/dates.ckpt-2-")
    assert checkpoint.metrics == {"step": 2, "train_loss": 1.0, "full_valid_loss": 1.0}
    assert world.registry.resolve(checkpoint.model).digest == checkpoint.digest

    evaluated = Progress("acme/dates", 4, 4, 0.25, 10.0, 0.0, {"eval_loss": 0.3, "eval_token_accuracy": 0.9})
    attempt.tell(step(3), step(4), Stepped(evaluated), world.finish(attempt, 4))
    world.rounds(leader, lambda: world.row(job).state == "succeeded")
    row = world.row(job)
    assert (row.fine_tuned_model, row.trained_tokens, row.finished_at is None) == ("acme/dates:1", 400, False)
    made = world.registry.manifest(world.registry.resolve("acme/dates:1"))
    assert (made.run, made.parent, made.dataset) == (job, parent, "sha256:" + "a" * 64)
    assert job not in world.cluster.running
    assert world.announced == [("fine_tuning.job.succeeded", job)]

    assert row.result_file is not None
    stored = world.store.get(f"files/{row.result_file}")
    assert stored is not None
    assert stored.data.decode().splitlines() == [
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy",
        "1,1.0,,,",
        "2,0.5,,,",
        "3,0.3333333333333333,,,",
        "4,0.25,,0.3,0.9",
    ]
    file = world.database.read(lambda session: session.get_one(FileRow, row.result_file))
    assert (file.purpose, file.tenant, file.status) == ("fine-tune-results", "acme", "processed")
    used = world.database.read(lambda session: list(session.scalars(select(UsageRow))))
    assert [(one.source, one.amount) for one in used if one.kind == "training_tokens"] == [(f"{job}/1", 400)]
    assert world.messages(job) == [
        f"Created fine-tuning job: {job}",
        "Validating training file: file-1",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        "Step 1/4: training loss=1.0000",
        "Step 2/4: training loss=0.5000",
        "Checkpoint created at step 2",
        "Step 3/4: training loss=0.3333",
        "Step 4/4: training loss=0.2500",
        "Step 4/4: training loss=0.2500, validation loss=0.3000, validation token accuracy=0.9000",
        "New fine-tuned model created: acme/dates:1",
        "The job has successfully completed",
    ]


@pytest.mark.parametrize(
    ("status", "details", "state", "message"),
    [
        ("error", "Line 3: messages must be a list.", "failed", "Line 3: messages must be a list."),
        ("uploaded", None, "validating_files", None),
        ("gone", None, "failed", "There is no file file-2 any more."),
    ],
)
def test_only_jobs_with_good_files_are_queued(
    world: World, status: str, details: str | None, state: str, message: str | None
) -> None:
    if status != "gone":
        world.file("file-2", status, details)
    job = world.job(validation_file="file-2")
    world.leader().run_once()
    row = world.row(job)
    assert row.state == state
    if message:
        expected = {"code": "invalid_validation_file", "message": message, "param": "validation_file"}
        assert row.error == expected
        assert world.announced == [("fine_tuning.job.failed", job)]
    else:
        assert row.waits_for == "file-2 is being checked"


def test_what_follows_from_checked_files_is_settled_with_the_validation(local_world: World) -> None:
    job, other = local_world.job(), local_world.job(suffix="bad")

    class Refused(PlatformError, ValueError):
        code, param = "invalid_n_examples", "training_file"

    def settle(row: JobRow, training: FileRow, validation: FileRow | None) -> None:
        assert (training.id, validation) == ("file-1", None)
        if row.suffix == "bad":
            raise Refused("Training file has 7 example(s).")
        row.settings = {"rank": 7}

    leader = Scheduler(local_world.settings, local_world.database, dispatcher=local_world.cluster, settle=settle)
    local_world.leaders.append(leader)
    assert local_world.running(leader, job).order.settings == {"rank": 7}
    error = {"code": "invalid_n_examples", "message": "Training file has 7 example(s).", "param": "training_file"}
    assert (local_world.row(other).state, local_world.row(other).error) == ("failed", error)


def test_a_database_that_drops_its_connections_stops_nothing(
    postgres_url: str, make_world: Callable[[Database], World]
) -> None:
    database = Database(postgres_url)
    upgrade(database)
    world = make_world(database)
    job, leader = world.job(), world.leader()
    attempt = world.running(leader, job)
    cut = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = :name"
    )
    admin = Database(postgres_url)
    for number in range(1, 5):
        admin.write(lambda session: session.execute(cut, {"name": admin.engine.url.database}))
        attempt.tell(step(number))
        world.rounds(leader, lambda number=number: world.row(job).step == number)  # type: ignore[misc]
    attempt.tell(world.finish(attempt, 4))
    world.rounds(leader, lambda: world.row(job).state == "succeeded")
    world.close()
    admin.close()
    database.close()


def test_the_next_leader_goes_on_where_the_last_one_was_killed(world: World) -> None:
    job, old = world.job(), world.leader()
    attempt = world.running(old, job)
    attempt.tell(Began(None), step(1), step(2))
    world.rounds(old, lambda: world.row(job).step == 2)
    new = world.leader()
    attempt.tell(step(3))
    with pytest.raises(LeaseLost):
        old.run_once()
    assert world.row(job).step == 2, "the old leader wrote"
    attempt.tell(world.save(attempt, 3), step(4), world.finish(attempt, 4))
    world.rounds(new, lambda: world.row(job).state == "succeeded")
    assert len(world.cluster.started) == 1
    assert [name for name in world.names(job) if name.startswith("step")] == ["step-1", "step-2", "step-3", "step-4"]


def test_a_leader_that_dies_after_publishing_publishes_nothing_twice(world: World) -> None:
    job, old = world.job(), world.leader()
    attempt = world.running(old, job)
    finished = world.finish(attempt, 4)
    attempt.tell(Began(None), finished)
    old._publisher.result(world.row(job), finished)  # and here it dies
    world.rounds(new := world.leader(), lambda: world.row(job).state == "succeeded")
    assert [str(version) for version in world.registry.show("acme/dates").versions] == ["acme/dates:1"]
    other = world.job()
    attempt = world.running(new, other)
    attempt.tell(world.finish(attempt, 4))
    world.rounds(new, lambda: world.row(other).state == "succeeded")
    assert world.row(other).fine_tuned_model == "acme/dates:2"


def test_a_lost_attempt_goes_on_from_its_checkpoint_and_not_for_ever(world: World) -> None:
    job, leader = world.job(), world.leader()
    attempt = world.running(leader, job)
    attempt.tell(Began(None), step(1), step(2), world.save(attempt, 2), step(3))
    world.rounds(leader, lambda: world.row(job).step == 3)
    attempt.tell(Failed("worker_lost", "Its worker died.", own=False))
    world.rounds(leader, lambda: len(world.cluster.started) == 2)
    again = world.cluster.started[1]
    assert (again.attempt, again.step, again.checkpoint) == (2, 3, f"runs/{job}/1/checkpoint-2")
    assert "The run was interrupted and goes on from step 2: Its worker died." in world.messages(job)
    for number in (2, 3, 4):
        world.cluster.running[job].tell(Failed("worker_lost", f"Died {number}.", own=False))
        world.rounds(leader, lambda number=number: len(world.cluster.started) == number + 1)  # type: ignore[misc]
    attempt = world.cluster.running[job]
    attempt.tell(world.save(attempt, 4))
    world.rounds(leader, lambda: world.row(job).failures == 0)
    for number in range(5):
        world.running(leader, job).tell(Failed("worker_lost", f"Died again {number}.", own=False))
        world.rounds(leader, lambda: job not in world.cluster.running)
    row = world.row(job)
    assert row.state == "failed"
    assert row.error is not None
    assert row.error["code"] == "worker_lost"
    assert row.error["message"] == (
        "5 attempts ended without a new checkpoint, the last so: Died again 4. "
        f"Its last checkpoint, after step 4, is kept. Its log: swapmeet jobs logs {job}"
    )


def test_a_lost_attempt_is_tried_again_after_longer_and_longer_pauses(local_world: World) -> None:
    job, leader = local_world.job(), local_world.leader()
    pauses = []
    for _ in range(3):
        local_world.running(leader, job).tell(Failed("worker_lost", "Died.", own=False))
        began = now()
        leader.run_once()
        row = local_world.row(job)
        assert row.not_before is not None
        assert row.waits_for is not None
        pauses.append(round((row.not_before - began).total_seconds()))
        leader.run_once()
        assert job not in local_world.cluster.running, "it did not wait"
    assert pauses == [2, 4, 8]


def test_a_full_disk_is_waited_out_for_longer(local_world: World) -> None:
    job, leader = local_world.job(), local_world.leader()
    for number in range(2 * MOST_FAILURES):
        local_world.rounds(leader, lambda: job in local_world.cluster.running)
        local_world.cluster.running[job].tell(Failed("storage_full", "No space left on device.", own=False))
        local_world.rounds(leader, lambda number=number: f"lost-{number + 1}" in local_world.names(job))
    row = local_world.row(job)
    assert (row.state, row.error, row.failures) == ("queued", None, 2 * MOST_FAILURES)


@pytest.mark.parametrize("code", ["invalid_training_file", "diverged", "invalid_hyperparameters"])
def test_what_is_the_jobs_own_fault_is_not_tried_again(local_world: World, code: str) -> None:
    job, leader = local_world.job(), local_world.leader()
    local_world.running(leader, job).tell(Failed(code, "Line 2 is no chat.", own=True))
    local_world.rounds(leader, lambda: local_world.row(job).state == "failed")
    row = local_world.row(job)
    assert row.error is not None
    assert (row.error["code"], row.error["message"], row.attempt) == (
        code, f"Line 2 is no chat. Its log: swapmeet jobs logs {job}", 1,
    )  # fmt: skip
    assert local_world.announced == [("fine_tuning.job.failed", job)]


def test_machines_and_clusters_that_are_gone(local_world: World) -> None:
    job, leader = local_world.job(), local_world.leader()
    cluster = local_world.cluster
    local_world.running(leader, job)
    cluster.nodes = [Machine("node-2", 4.0, 0.0, 1 << 30, 4.0, 1 << 30)]
    cluster.known.add("node-2")
    local_world.rounds(leader, lambda: len(cluster.started) == 2)
    assert (cluster.started[1].node, local_world.row(job).failures) == ("node-2", 1)
    for number in range(8):  # a server that is killed and started again and again: each time another cluster
        name = f"node-{3 + number}"
        cluster.nodes, cluster.known, cluster.running = [Machine(name, 4.0, 0.0, 0, 4.0, 0)], {name}, {}
        local_world.rounds(leader, lambda number=number: len(cluster.started) == 3 + number)  # type: ignore[misc]
    assert (local_world.row(job).state, local_world.row(job).failures) == ("running", 1)


def test_an_attempt_that_was_given_up_is_not_heard(local_world: World) -> None:
    job, leader = local_world.job(), local_world.leader()
    zombie = local_world.running(leader, job)
    zombie.tell(Began(None), step(1))
    local_world.rounds(leader, lambda: local_world.row(job).step == 1)
    del local_world.cluster.running[job]
    monotonic = now() - timedelta(minutes=1)

    def older(session: Session) -> None:
        session.get_one(JobRow, job).attempt_at = monotonic

    local_world.database.write(older)
    local_world.rounds(leader, lambda: len(local_world.cluster.started) == 2)
    local_world.save(zombie, 4)  # a checkpoint that nobody hears of, of the attempt before: found by the second only
    zombie.tell(step(2), step(3), step(4), local_world.finish(zombie, 4))
    second = local_world.cluster.running[job]
    local_world.cluster.running[job] = zombie
    leader.run_once()
    assert local_world.row(job).step == 1
    assert job in local_world.cluster.ended
    local_world.cluster.running[job] = second
    second.tell(Began(None), step(2), Failed("worker_lost", "Died.", own=False))
    local_world.rounds(leader, lambda: len(local_world.cluster.started) >= 3)
    third = local_world.cluster.started[-1]
    assert RunStorage(local_world.store, job).newest(third.attempt, third.checkpoint) is None
    with pytest.raises(NotFound):
        local_world.registry.show("acme/dates")


def test_a_cancelled_run_ends_in_the_next_round_and_says_no_more(world: World) -> None:
    job, leader = world.job(), world.leader()
    attempt = world.running(leader, job)
    attempt.tell(Began(None), step(1))
    world.rounds(leader, lambda: world.row(job).step == 1)
    assert world.jobs.cancel("acme", job).state == "cancelled"
    attempt.tell(step(2), world.finish(attempt, 4))
    leader.run_once()
    assert world.cluster.ended == [job]
    assert (world.row(job).state, world.row(job).step) == ("cancelled", 1)
    used = world.database.read(lambda session: list(session.scalars(select(UsageRow))))
    assert [one.amount for one in used if one.kind == "training_tokens"] == [100]


@pytest.mark.parametrize("leader_dies", [False, True])
def test_a_job_that_is_cancelled_while_it_publishes_leaves_no_unlisted_checkpoint(
    local_world: World, monkeypatch: pytest.MonkeyPatch, leader_dies: bool
) -> None:
    """Also where the leader is killed right after: the next one finds the attempt, and ends it."""
    job, leader = local_world.job(), local_world.leader()
    attempt = local_world.running(leader, job)
    attempt.tell(step(2), local_world.save(attempt, 2))
    local_world.rounds(leader, lambda: local_world.jobs.checkpoints("acme", job)[0])
    pushing, cancelled = threading.Event(), threading.Event()
    push = Registry.push

    def held(*arguments: Any, **options: Any) -> Any:
        pushing.set()
        assert cancelled.wait(20)
        return push(*arguments, **options)

    monkeypatch.setattr(Registry, "push", held)
    attempt.tell(step(4), local_world.save(attempt, 4))
    local_world.rounds(leader, pushing.is_set)
    local_world.jobs.cancel("acme", job)
    if leader_dies:
        cancelled.set()
        leader._chores.close()
        leader = local_world.leader()
    local_world.rounds(leader, lambda: local_world.cluster.ended)
    cancelled.set()
    name = checkpoint_name("acme/dates", 4, job)
    local_world.rounds(leader, lambda: name in local_world.registry.names())
    local_world.rounds(leader, lambda: all(each.deleted for each in local_world.registry.show(name).versions))
    (listed,) = local_world.jobs.checkpoints("acme", job)[0]
    assert local_world.registry.show(listed.model).versions[0].usable


def test_a_run_pauses_at_a_checkpoint_and_goes_on_from_it(world: World) -> None:
    job, leader = world.job(), world.leader()
    attempt = world.running(leader, job)
    attempt.tell(Began(None), step(1))
    world.jobs.pause("acme", job)
    world.rounds(leader, lambda: attempt.parked)
    assert world.row(job).state == "running"
    saved = world.save(attempt, 1)
    attempt.tell(saved, Stopped(saved.checkpoint))
    world.rounds(leader, lambda: world.row(job).state == "paused")
    for _ in range(3):
        leader.run_once()
    assert world.cluster.running == {}
    world.jobs.resume("acme", job)
    again = world.running(leader, job).order
    assert (again.attempt, again.checkpoint) == (2, saved.checkpoint)
    assert world.row(job).failures == 0
    assert "The run stopped after step 1 and is paused" in world.messages(job)


def test_a_run_makes_room_and_says_why(local_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job, leader = local_world.job(), local_world.leader()
    attempt = local_world.running(leader, job)
    local_world.job(priority=5)
    leader.run_once()
    told = Decision(preempts=[job], because={job: "acme/urgent has a higher priority."})
    seen: list[bool] = []

    def decide(waiting: Any, active: Any, *_: Any) -> Decision:
        if not any(one.id == job for one in active):
            return Decision()
        seen.append(active[0].parking)
        return told

    monkeypatch.setattr(placing, "decide", decide)
    local_world.job()
    for _ in range(3):
        with_waiting = local_world.job()
        leader.run_once()
        assert local_world.row(with_waiting).state == "queued"
    assert attempt.parked
    assert seen[-1] is True
    saved = local_world.save(attempt, 1)
    attempt.tell(saved, Stopped(saved.checkpoint))
    local_world.rounds(leader, lambda: local_world.row(job).state == "queued")
    said = [message for message in local_world.messages(job) if "makes room" in message]
    assert said == ["The run makes room and waits for its turn again: acme/urgent has a higher priority."]


def test_the_last_checkpoints_and_the_best_are_models(world: World) -> None:
    job, leader = world.job(), world.leader()
    attempt = world.running(leader, job)
    runs = RunStorage(world.store, job)
    own = checkpoint_name("acme/dates", 1, job)
    attempt.tell(world.save(attempt, 1, best=1, loss=2))
    world.rounds(leader, lambda: "checkpoint-1" in world.names(job))
    mine = world.registry.push(world.adapter, own, base=world.registry.manifest(world.registry.resolve(own)).base)
    world.database.write(lambda session: note_published(session, mine, 0))
    for number in range(2, 8):
        attempt.tell(world.save(attempt, number, best=2, loss=abs(2 - number) + 1))
    world.rounds(leader, lambda: f"checkpoint-{7}" in world.names(job))
    assert [row.step for row in world.jobs.checkpoints("acme", job)[0]] == [7, 6, 5, 2]
    found = [name for name in world.registry.names() if name.startswith("acme/dates.ckpt-")]
    alive = []
    for name in found:
        try:
            world.registry.resolve(name)
        except NotFound:
            continue
        alive.append(int(name.split("-")[1]))
    assert sorted(alive) == [1, 2, 5, 6, 7]
    assert len(found) == 7
    assert [each.deleted is None for each in world.registry.show(own).versions] == [False, True], "a user's own stays"
    left = 5
    for _ in range(2):
        row = world.database.read(lambda session: session.get_one(TenantRow, "acme"))
        assert row.adapter_versions == left, "what is no model any more counts no more"
        Stocktaking(world.database, world.registry).count()
    stored = {file.sha256 for name in found for each in world.registry.show(name).versions if each.deleted is None
              for file in world.registry.manifest(each).files}  # fmt: skip
    assert isinstance(world.registry.backend, StoreBackend)
    collect(world.registry.backend.store, age=0, grace=0)
    assert {path.name for path in (world.settings.folder / "registry" / "blobs" / "sha256").iterdir()} == stored
    assert [key.rpartition("-")[2] for key in runs.checkpoints()] == ["2", "6", "7"]


def test_the_longest_names_and_largest_steps_make_a_name(local_world: World) -> None:
    job, leader = local_world.job(adapter=f"acme/{'n' * 61}.x"), local_world.leader()
    attempt = local_world.running(leader, job)
    attempt.tell(local_world.save(attempt, 2_000_000_000))
    local_world.rounds(leader, lambda: local_world.jobs.checkpoints("acme", job)[0])
    (row,) = local_world.jobs.checkpoints("acme", job)[0]
    assert len(row.model) == len("acme/") + 63
    assert local_world.registry.resolve(row.model).digest == row.digest


def test_a_registry_that_is_away_is_waited_for(local_world: World) -> None:
    registry = local_world.settings.folder / "registry"
    registry.parent.mkdir(parents=True, exist_ok=True)
    registry.write_text("in the way")
    job, leader = local_world.job(), local_world.leader()
    attempt = local_world.running(leader, job)
    attempt.tell(step(1), local_world.finish(attempt, 1), Noted("never", "heard after the end"))
    local_world.rounds(leader, lambda: "publish-1-2" in local_world.names(job))
    assert local_world.row(job).state == "running"
    registry.unlink()
    local_world.rounds(leader, lambda: local_world.row(job).state == "succeeded")
    assert "never" not in local_world.names(job)
    assert len(local_world.registry.show("acme/dates").versions) == 1


def test_what_can_not_be_published_fails_the_job_with_the_reason(local_world: World, tmp_path: Path) -> None:
    job, leader = local_world.job(), local_world.leader()
    attempt = local_world.running(leader, job)
    finished = local_world.finish(attempt, 1)
    bad = tmp_path / "bad"
    shutil.copytree(local_world.adapter, bad)
    (bad / "adapter_model.safetensors").write_bytes(b"no weights")
    attempt.tell(step(1), local_world.save(attempt, 1))
    local_world.adapter = bad
    attempt.tell(local_world.save(attempt, 2), local_world.finish(attempt, 2), finished)
    local_world.rounds(leader, lambda: local_world.row(job).state == "failed")
    error = local_world.row(job).error
    assert error is not None
    assert error["code"] == "adapter_refused"
    assert error["message"].startswith("The run is done, but its adapter can not be published: ")
    assert any("is no model" in message for message in local_world.messages(job))


def test_a_job_that_breaks_the_queue_stops_no_other(local_world: World) -> None:
    bad = [
        local_world.job(resources={"cpus": -1}),
        local_world.job(resources={"cpus": 1, "gpus": 1.5}),
        local_world.job(resources={"cpus": "many"}),
        local_world.job(resources={"cpus": 1, "memory": -1}),
    ]
    good, leader = local_world.job(), local_world.leader()
    attempt = local_world.running(leader, good)
    assert {local_world.row(job).state for job in bad} == {"failed"}
    odd = local_world.job()
    local_world.running(leader, odd).tell("nonsense")  # type: ignore[arg-type]
    local_world.running(leader, odd).told.append((2, Saved("nonsense")))
    attempt.tell(step(1), local_world.finish(attempt, 1))
    local_world.rounds(leader, lambda: local_world.row(good).state == "succeeded")


def test_an_attempt_that_does_not_answer_is_given_up(local_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job, leader = local_world.job(), local_world.leader()
    local_world.running(leader, job)
    local_world.cluster.mute.add(job)
    for _ in range(3):
        leader.run_once()
    assert len(local_world.cluster.started) == 1
    monkeypatch.setattr("swapmeet.queue.listening.SILENCE", 0.0)
    local_world.rounds(leader, lambda: len(local_world.cluster.started) == 2)
    assert any("does not answer" in message for message in local_world.messages(job))


def test_a_worker_that_finds_no_room_costs_the_job_nothing(local_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job, leader = local_world.job(), local_world.leader()
    monkeypatch.setattr(scheduler, "START_LIMIT", 0.0)
    local_world.rounds(leader, lambda: len(local_world.cluster.started) == 8)
    assert (local_world.row(job).failures, local_world.row(job).attempt) == (0, 8)


def test_why_a_job_waits_is_noted(world: World) -> None:
    job, leader = world.job(resources={"cpus": 64}), world.leader()
    world.rounds(leader, lambda: world.row(job).waits_for)
    assert world.row(job).state == "queued"
    assert world.cluster.started == []


def test_a_leader_that_was_frozen_ends_nothing_of_its_successors(local_world: World) -> None:
    """It stood still between two steps of a round, while the next leader gave the attempt up and started another."""
    job, old = local_world.job(), local_world.leader()
    local_world.running(old, job)
    cluster, stale = local_world.cluster, [local_world.row(job)]
    cluster.running.clear()
    cluster.known = set()
    local_world.rounds(local_world.leader(), lambda: len(cluster.started) == 2)
    second = cluster.running[job]
    with pytest.raises(LeaseLost):
        old._recover(set(), stale)
    old._listener.listen(stale)
    old.run_once()
    assert cluster.running[job] is second
    assert (local_world.row(job).state, local_world.row(job).attempt) == ("running", 2)


def test_attempts_that_no_job_wants_are_ended(local_world: World) -> None:
    job, leader = local_world.job(), local_world.leader()
    order = local_world.running(leader, job).order
    local_world.cluster.running["ftjob-unknown"] = Attempt(order)
    leader.run_once()
    assert local_world.cluster.ended == ["ftjob-unknown"]


def test_a_server_that_stops_parks_what_runs(local_world: World) -> None:
    job, leader = local_world.job(), local_world.leader()
    attempt = local_world.running(leader, job)

    def park() -> None:
        while not attempt.parked:
            time.sleep(0.01)
        saved = local_world.save(attempt, 3)
        attempt.tell(Began(None), step(3), saved, Stopped(saved.checkpoint))

    thread = threading.Thread(target=park)
    thread.start()
    leader.leave(20)
    thread.join()
    row = local_world.row(job)
    assert (row.state, row.failures, row.checkpoint) == ("queued", 0, f"runs/{job}/1/checkpoint-3")
    assert local_world.cluster.running == {}


def test_who_serves_leads_and_leaves_nothing_running(local_world: World) -> None:
    job, stop = local_world.job(), threading.Event()
    leader = Scheduler(local_world.settings, local_world.database, dispatcher=local_world.cluster)
    other = Scheduler(local_world.settings, local_world.database, dispatcher=local_world.cluster)
    threads = [threading.Thread(target=each.serve, args=(stop,)) for each in (leader, other)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while job not in local_world.cluster.running:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert leader.lease.leads != other.lease.leads
    attempt = local_world.cluster.running[job]
    stop.set()
    while not attempt.parked:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    saved = local_world.save(attempt, 3)
    attempt.tell(Began(None), step(3), saved, Stopped(saved.checkpoint))
    for thread in threads:
        thread.join()
    assert local_world.row(job).state == "queued"
    assert not leader.lease.leads
    assert "The server stops; the run goes on when it is back" in local_world.messages(job)


@pytest.mark.parametrize("seed", range(6))
def test_whoever_dies_there_is_one_adapter_and_each_event_once(local_world: World, seed: int) -> None:
    """Leaders, attempts and clusters die at random between any two rounds, and callers pause and resume."""
    chance, world, total = random.Random(seed), local_world, 12
    job, leader = world.job(), world.leader()
    saved: dict[int, int] = {}
    deadline = time.monotonic() + 60
    while world.row(job).state != "succeeded":
        assert time.monotonic() < deadline, world.messages(job)
        _misfortune(world, chance, job)
        if chance.random() < 0.05:
            leader = world.leader()
        leader.lease.hold()
        leader.run_once()
        world.database.write(world.hurry)
        if (attempt := world.cluster.running.get(job)) is not None:
            _advance(world, attempt, chance, saved, total)
    names = world.names(job)
    assert len(names) == len(set(names))
    assert [name for name in names if name.startswith("step")] == [f"step-{n + 1}" for n in range(total)]
    assert [str(one) for one in world.registry.show("acme/dates").versions] == ["acme/dates:1"]
    assert world.announced == [("fine_tuning.job.succeeded", job)]
    rows = world.database.read(lambda session: list(session.scalars(select(CheckpointRow))))
    assert len(rows) <= 4
    used = world.database.read(lambda session: list(session.scalars(select(UsageRow))))
    assert sum(one.amount for one in used if one.kind == "training_tokens") == 100 * total


def _misfortune(world: World, chance: random.Random, job: str) -> None:
    dice = chance.random()
    if dice < 0.03:
        world.cluster.running.pop(job, None)
        world.database.write(lambda session: setattr(session.get_one(JobRow, job), "attempt_at", now() - timedelta(1)))
        world.database.write(lambda session: setattr(session.get_one(JobRow, job), "failures", 0))
    elif dice < 0.05:
        name = f"node-{chance.random()}"
        world.cluster.nodes, world.cluster.known, world.cluster.running = [Machine(name, 4, 0, 0, 4, 0)], {name}, {}
    elif dice < 0.07 and world.row(job).state != "succeeded":
        world.jobs.pause("acme", job)
    if world.row(job).wanted == "pause" and chance.random() < 0.3:
        world.jobs.resume("acme", job)


def _advance(world: World, attempt: Attempt, chance: random.Random, saved: dict[int, int], total: int) -> None:
    """What a worker does in a moment: begin where its checkpoint is, step, save, stop or finish."""
    if any(isinstance(told, Finished | Stopped) for _, told in attempt.told):
        return
    runs = RunStorage(world.store, attempt.order.job)
    if not attempt.told:
        key = runs.newest(attempt.order.attempt, attempt.order.checkpoint)
        at = int(key.rpartition("-")[2]) if key else 0
        attempt.tell(Began(key), *[step(n, total) for n in range(attempt.order.step + 1, at + 1)])
        saved[attempt.order.attempt] = at
    at = saved[attempt.order.attempt]
    if attempt.parked and at:
        one = world.save(attempt, at)
        attempt.tell(one, Stopped(one.checkpoint))
    elif at < total:
        attempt.tell(step(at + 1, total))
        saved[attempt.order.attempt] = at + 1
        if chance.random() < 0.3:
            one = world.save(attempt, at + 1)
            if chance.random() < 0.7:  # else it dies before it told
                attempt.tell(one)
            else:
                world.cluster.running.pop(attempt.order.job, None)
                older = now() - timedelta(1)
                world.database.write(
                    lambda session: setattr(session.get_one(JobRow, attempt.order.job), "attempt_at", older)
                )
    else:
        attempt.tell(world.finish(attempt, total))
