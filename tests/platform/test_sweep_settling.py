"""The end of a sweep: which is the best, published once whoever dies, and nothing left of the others but figures."""

import hashlib
import itertools
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from swapmeet.audit_export import Link, verify
from swapmeet.database import Database
from swapmeet.database.migrations import upgrade
from swapmeet.database.tables import CheckpointRow, DeliveryRow, FileRow, JobRow, TenantRow, WebhookRow
from swapmeet.database.tables.base import now
from swapmeet.errors import LeaseLost, WrongState
from swapmeet.files import Files
from swapmeet.fine_tuning.models import Models
from swapmeet.fine_tuning.rows import JobRequests
from swapmeet.ids import new_id
from swapmeet.jobs import Jobs
from swapmeet.jobs.ending import fail, move
from swapmeet.jobs.publishing import Publisher, checkpoint_name
from swapmeet.jobs.states import Move
from swapmeet.queue.chores import Chores
from swapmeet.queue.leading import Leading
from swapmeet.queue.lease import SCHEDULER, Lease
from swapmeet.queue.recording import record
from swapmeet.settings import Settings
from swapmeet.sweeps.request import parse_sweep
from swapmeet.sweeps.rows import rows_of
from swapmeet.sweeps.runs import Tried
from swapmeet.sweeps.settling import Settler
from swapmeet.sweeps.sweeps import Sweeps
from swapmeet.tenancy.audit import Audit
from swapmeet.webhooks import EVENTS, announce
from swapmeet_registry import NotFound, Provenance, Refused, Registry, StoreError, fault, open_store
from swapmeet_registry.bases import BaseLibrary
from swapmeet_registry.fingerprint import fingerprint
from swapmeet_training.attempts.run_storage import RunStorage
from swapmeet_training.attempts.telling import Finished, Saved, Stepped
from swapmeet_training.progress import Progress

sys.path.append(str(Path(__file__).parent))
from crashing import publish_and_withdraw

LOSSES = (0.5, 0.3, 0.4)


class Killed(BaseException):
    """What a process that is killed feels."""


class World:
    """Jobs that end as the test says, and leaders that settle their sweeps."""

    def __init__(self, database: Database, adapter: Path, base: Path, home: Path) -> None:
        self.database, self.adapter = database, adapter
        self.settings = Settings(home=home)
        BaseLibrary(self.settings.folder).add(str(base))
        self.registry = Registry(self.settings.registry_url)
        self.store = open_store(self.settings.storage_url)
        self.publisher = Publisher(self.settings, database)
        self.jobs, self.sweeps = Jobs(database, announce), Sweeps(database, announce)
        files = Files(database, self.store)
        self.requests = JobRequests(files, Models(self.registry, lambda: ["tiny-llama"]), self.settings)
        hook = {"id": "whep_1", "tenant": "acme", "url": "https://example.org", "secret": b"", "events": list(EVENTS)}
        database.write(lambda session: session.add_all([TenantRow(name="acme"), TenantRow(name="beta")]))
        database.write(lambda session: session.add(WebhookRow(**hook)))
        self.training, self.held_out = self.file(), self.file()
        self.lease: Lease | None = None
        self.chores: list[Chores] = []

    def file(self) -> str:
        name, digest = new_id("file-"), hashlib.sha256(b"{}").hexdigest()
        values: dict[str, Any] = {"filename": "a.jsonl", "purpose": "fine-tune", "bytes": 2, "sha256": digest}
        row = FileRow(id=name, tenant="acme", status="processed", report={"form": "chat", "examples": 40}, **values)
        self.database.write(lambda session: session.add(row))
        return name

    def sweep(self, name: str = "dates", ranks: tuple[int, ...] = (2, 4, 8), **more: Any) -> Tried:
        body: dict[str, Any] = {"model": "tiny-llama", "training_file": self.training, "validation_file": self.held_out}
        body |= {"lora": {"name": name}}
        wanted = parse_sweep({**body, "sweep": {"grid": {"rank": list(ranks)}, **more}})
        return self.sweeps.create(rows_of(self.requests, wanted, "acme", "key-1", lambda _: True, name))

    def change(self, job: str, work: Callable[[Session, JobRow], Any]) -> None:
        self.database.write(lambda session: work(session, session.get_one(JobRow, job, with_for_update=True)))

    def start(self, job: str) -> None:
        def begin(session: Session, row: JobRow) -> None:
            move(session, row, Move.VALIDATE)
            move(session, row, Move.START)
            row.attempt, row.attempt_at = 1, now()

        self.change(job, begin)

    def finish(self, job: str, loss: float | None, **metrics: float) -> None:
        """A run to its end: two steps, a checkpoint, the adapter and its log in the storage."""
        self.start(job)
        runs = RunStorage(self.store, job)
        for number in (1, 2):
            step = Stepped(Progress("x", number, 2, 3.0 - number, 1.0, 0.0, {}, {"epoch": number / 2}, 100 * number))
            self.change(job, lambda session, row, step=step: record(session, row, step, None, announce))
        saved = Saved(runs.key(1, "checkpoint-2"), {"step": 2.0})
        runs.keep(saved.checkpoint, self.adapter, {"metrics": {}, "best": None, "best_loss": None})
        model = self.publisher.checkpoint(self.jobs.get(None, job), saved)
        self.change(job, lambda session, row: record(session, row, saved, model, announce))
        runs.put(runs.key(1, "log.txt"), b"a line\n")
        found = {"loss": 1.0} | ({} if loss is None else {"eval_loss": loss}) | metrics
        finished = Finished(runs.key(1, "adapter"), found, 2, 200)
        runs.keep(finished.adapter, self.adapter, {})
        made = self.publisher.result(self.jobs.get(None, job), finished)
        assert made.version is None
        self.change(job, lambda session, row: record(session, row, finished, made, announce))

    def fail(self, job: str, message: str) -> None:
        self.start(job)
        self.change(job, lambda session, row: fail(session, row, "diverged", message, announce))

    def finish_all(self, sweep: Tried, losses: tuple[float, ...] = LOSSES) -> None:
        for run, loss in zip(sweep.runs, losses, strict=True):
            self.finish(run.job, loss)

    def leader(self, database: Database | None = None) -> Settler:
        """A new process that leads from now on."""
        if self.lease is not None:
            self.lease.release()
        self.lease = Lease(self.database, SCHEDULER, "test")
        assert self.lease.hold()
        self.chores.append(Chores())
        leading = Leading(database or self.database, self.lease)
        return Settler(leading, self.chores[-1], self.publisher, announce)

    def settled(self, sweep: str, leader: Settler) -> Tried:
        """The sweep, when there is nothing more to be done."""
        until = time.monotonic() + 30
        while (found := self.sweeps.get(None, sweep)).row.state == "running" or (
            found.row.state == "succeeded" and found.row.cleared_at is None
        ):
            assert time.monotonic() < until
            assert self.lease is not None
            assert self.lease.hold()
            leader.settle()
            time.sleep(0.002)
        return found

    def messages(self, job: str) -> list[str]:
        return [row.message for row in reversed(self.jobs.events(None, job, limit=100)[0])]

    def told(self, thing: str) -> list[str]:
        """What webhooks are told of something."""
        query = select(DeliveryRow.type, DeliveryRow.body).order_by(DeliveryRow.number)
        rows = self.database.read(lambda session: session.execute(query).all())
        return [type_ for type_, body in rows if f'"{thing}"' in body]

    def left(self, job: str) -> list[str]:
        """What of a job is in the storage."""
        return sorted({key.split("/")[3] for key in self.store.list(f"runs/{job}/")})


@pytest.fixture(scope="module")
def adapter(tiny_llama: Path, random_lora: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = random_lora(tiny_llama, tmp_path_factory.mktemp("lora") / "adapter", rank=2)
    Provenance(base=fingerprint(tiny_llama, "tiny-llama"), dataset="sha256:" + "a" * 64).write(folder)
    return folder


def closed(world: World) -> Iterator[World]:
    yield world
    for chores in world.chores:
        chores.close()


@pytest.fixture
def world(database: Database, adapter: Path, tiny_llama: Path, tmp_path: Path) -> Iterator[World]:
    yield from closed(World(database, adapter, tiny_llama, tmp_path / "home"))


@pytest.fixture
def local_world(adapter: Path, tiny_llama: Path, tmp_path: Path) -> Iterator[World]:
    """For what does not hang on the database's kind."""
    database = Database(f"sqlite:///{tmp_path}/swapmeet.db")
    upgrade(database)
    yield from closed(World(database, adapter, tiny_llama, tmp_path / "home"))
    database.close()


def models(world: World, job: str) -> list[str]:
    query = select(CheckpointRow.model).where(CheckpointRow.job == job)
    return world.database.read(lambda session: list(session.scalars(query)))


def require_kept(world: World, sweep: Tried, best: int, models_of: dict[str, list[str]]) -> None:
    """One adapter, of the best; of the others nothing but figures and logs; everything told once."""
    name = sweep.row.adapter
    (version,) = world.registry.show(name).versions
    winner = sweep.runs[best].job
    manifest = world.registry.manifest(version)
    assert (manifest.run, sweep.row.best, sweep.row.fine_tuned_model) == (winner, winner, str(version))
    for run in sweep.runs:
        job = world.jobs.get("acme", run.job)
        assert (job.state, job.fine_tuned_model) == ("succeeded", str(version) if run.job == winner else None)
        assert job.result_file is not None
        assert world.store.get(f"files/{job.result_file}") is not None
        assert run.metrics
        (checkpoint,) = models_of[run.job]
        if run.job == winner:
            assert models(world, run.job) == [checkpoint]
            world.registry.resolve(checkpoint)
            assert "adapter" in world.left(run.job)
        else:
            assert models(world, run.job) == []
            with pytest.raises(NotFound, match="Another configuration of the sweep"):
                world.registry.resolve(f"{checkpoint}:1")
            assert world.left(run.job) == ["log.txt"]
        assert world.told(run.job) == ["fine_tuning.job.succeeded"]
        assert len(set(world.messages(run.job))) == len(world.messages(run.job))
    assert world.told(sweep.row.id) == ["fine_tuning.sweep.succeeded"]


def test_the_best_is_published_and_the_rest_goes(world: World) -> None:
    sweep = world.sweep()
    first, second, third = sweep.runs
    leader = world.leader()
    world.finish(first.job, 0.5)
    world.finish(second.job, 0.3)
    leader.settle()
    assert world.sweeps.get("acme", sweep.row.id).row.state == "running"
    with pytest.raises(NotFound):
        world.registry.show("acme/dates")
    world.finish(third.job, 0.4)
    checkpoints = {run.job: models(world, run.job) for run in sweep.runs}
    found = world.settled(sweep.row.id, leader)
    require_kept(world, found, 1, checkpoints)
    assert [dict(run.metrics) for run in found.runs] == [
        {"valid_loss": loss, "train_loss": 1.5}
        for loss in LOSSES  # the mean of the last epoch's two steps
    ]
    assert found.row.finished_at is not None
    assert world.messages(second.job)[-1] == (
        "The best of 3 configurations (valid_loss 0.3). New fine-tuned model created: acme/dates:1"
    )
    assert world.messages(first.job)[-1] == (
        "Configuration 2 is the best of the sweep (valid_loss 0.3); this one's adapter goes"
    )
    with pytest.raises(WrongState, match="This sweep is succeeded and can not be cancelled"):
        world.sweeps.cancel("acme", sweep.row.id)


@pytest.mark.slow
def test_whoever_is_killed_wherever_there_is_one_sweep_and_one_adapter(
    local_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaders are killed at the first point of settling, the next ones at the second, and so on to the last."""
    points: list[str] = []
    deadly = 0

    def reached(point: str) -> None:
        if not point.startswith(("push", "sql", "delete")):
            return
        if 0 < deadly <= len(points):  # the dead tidy nothing up
            raise Killed(point)
        points.append(point)
        if len(points) == deadly:
            raise Killed(point)

    class Mortal(Database):
        def write(self, work: Callable[[Session], Any]) -> Any:
            reached("sql.before")
            done = super().write(work)
            reached("sql.after")
            return done

    delete = type(local_world.store).delete

    def mortal_delete(self: Any, key: str) -> None:
        reached("delete.before")
        delete(self, key)

    monkeypatch.setattr(type(local_world.store), "delete", mortal_delete)
    monkeypatch.setattr(fault, "hook", reached)
    mortal = Mortal(local_world.database.url)
    for number in itertools.count(1):
        sweep = local_world.sweep(f"dates-{number}", (2, 4))
        local_world.finish_all(sweep, (0.5, 0.3))
        checkpoints = {run.job: models(local_world, run.job) for run in sweep.runs}
        points.clear()
        deadly = number
        with suppress(Killed):
            local_world.settled(sweep.row.id, local_world.leader(mortal))
        deadly, died = 0, len(points)
        require_kept(local_world, local_world.settled(sweep.row.id, local_world.leader()), 1, checkpoints)
        assert died <= number, "more went on after the kill"
        if died < number:
            break
    assert {"push.before_head", "push.head", "sql.before", "sql.after", "delete.before"} <= set(points)
    assert died > 15
    mortal.close()


@pytest.mark.slow
def test_whoever_is_killed_what_a_job_did_is_in_the_log(local_world: World) -> None:
    """Of each step in turn a process is killed (SIGKILL) that publishes a checkpoint and withdraws it."""
    world, job = local_world, local_world.sweep(ranks=(2, 4)).runs[0].job
    row, runs, found = world.jobs.get(None, job), RunStorage(world.store, job), set[tuple[tuple[str, ...], int]]()
    for number in itertools.count(1):
        saved = Saved(runs.key(1, f"checkpoint-{number}"), {"step": float(number)})
        runs.keep(saved.checkpoint, world.adapter, {"metrics": {}, "best": None, "best_loss": None})
        code = publish_and_withdraw(world.settings, world.database.url, job, saved, number)
        name = checkpoint_name(row.adapter, number, job)
        try:
            (version,) = world.registry.show(name).versions
            stage = 2 if version.deleted else 1
        except NotFound:
            stage = 0
        (log,), entries = log_of(world, name)
        found.add((tuple(f"{each['action']} {each['outcome']}" for each in entries), stage))
        assert all((each["actor"], each["key"]) == ("acme", job) for each in entries)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert publish_and_withdraw(world.settings, world.database.url, job, saved, 0) == 0
    publish, delete = ("adapter.publish begun", "adapter.publish done"), ("version.delete begun", "version.delete done")
    assert found == {
        ((), 0),
        (publish[:1], 0),
        (publish[:1], 1),
        (publish, 1),
        ((*publish, *delete[:1]), 1),
        ((*publish, *delete[:1]), 2),
        ((*publish, *delete), 2),
    }
    assert {each["action"] for each in log.unended} == {"version.delete"}, "a publish is tried again until it is done"


def log_of(world: World, subject: str) -> tuple[list[Link], list[dict[str, Any]]]:
    """The audit log, which is whole, and what in it is of a subject, oldest first."""
    lines = [line.decode() for line in Audit(world.database).export("acme")]
    entries = map(json.loads, lines[1:])
    return verify(lines), [each for each in entries if each["subject"].partition(":")[0] == subject]


def test_who_leads_no_more_decides_nothing(local_world: World) -> None:
    sweep, old = local_world.sweep(), local_world.leader()
    local_world.finish_all(sweep)
    checkpoints = {run.job: models(local_world, run.job) for run in sweep.runs}
    new = local_world.leader()

    def go_on() -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            old.settle()

    with pytest.raises(LeaseLost):
        go_on()
    assert local_world.sweeps.get("acme", sweep.row.id).row.state == "running"
    require_kept(local_world, local_world.settled(sweep.row.id, new), 1, checkpoints)


def test_one_that_fails_does_not_fail_the_others(local_world: World) -> None:
    sweep = local_world.sweep()
    local_world.fail(sweep.runs[0].job, "The loss is no number.")
    local_world.finish(sweep.runs[1].job, 0.5)
    local_world.jobs.cancel("acme", sweep.runs[2].job)
    found = local_world.settled(sweep.row.id, local_world.leader())
    assert (found.row.state, found.row.best, found.row.error) == ("succeeded", sweep.runs[1].job, None)


def test_a_sweep_fails_where_all_do(local_world: World) -> None:
    sweep = local_world.sweep()
    for run in sweep.runs[:2]:
        local_world.fail(run.job, "The loss is no number.")
    local_world.jobs.cancel("acme", sweep.runs[2].job)
    found = local_world.settled(sweep.row.id, local_world.leader())
    assert found.row.state == "failed"
    assert found.row.error == {
        "code": "sweep_failed",
        "message": "None of 3 configurations succeeded. Configuration 1: The loss is no number. "
        f"Its log: swapmeet jobs logs {sweep.runs[0].job}",
        "param": None,
    }
    assert local_world.told(sweep.row.id) == ["fine_tuning.sweep.failed"]
    again = local_world.sweep()
    assert again.row.id != sweep.row.id, "who asks again wants another"


def test_the_metric_decides_and_of_equals_the_first(local_world: World) -> None:
    leader = local_world.leader()
    accurate = local_world.sweep("a", metric="valid_accuracy")
    for run, accuracy in zip(accurate.runs, (0.7, 0.9, 0.9), strict=True):
        local_world.finish(run.job, 0.1, eval_token_accuracy=accuracy)
    assert local_world.settled(accurate.row.id, leader).row.best == accurate.runs[1].job
    trained = local_world.sweep("b", (2, 4), metric="train_loss")
    for run in trained.runs:
        local_world.finish(run.job, None)
    assert local_world.settled(trained.row.id, leader).row.best == trained.runs[0].job
    odd = local_world.sweep("c", (2, 4))
    local_world.finish(odd.runs[0].job, float("nan"))
    local_world.finish(odd.runs[1].job, 7.0)
    assert local_world.settled(odd.row.id, leader).row.best == odd.runs[1].job
    none = local_world.sweep("d", (2, 4))
    local_world.finish_all(none, (float("nan"), float("inf")))
    error = local_world.settled(none.row.id, leader).row.error or {}
    assert error["message"] == "2 of 2 configurations were trained, and none measured a valid_loss that is a number."


def test_what_can_not_be_published_is_passed_over_and_a_registry_that_is_away_waited_for(
    local_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = local_world.sweep()
    local_world.finish_all(sweep)
    kept, outages = local_world.publisher.kept, [StoreError("It is away."), StoreError("It is away.")]

    def odd(job: JobRow, adapter: str) -> Any:
        if outages:
            raise outages.pop()
        if job.id == sweep.runs[1].job:
            raise Refused("Its weights are no numbers.")
        return kept(job, adapter)

    monkeypatch.setattr(local_world.publisher, "kept", odd)
    monkeypatch.setattr("swapmeet.queue.chores.FIRST_PAUSE", 0.01)
    found = local_world.settled(sweep.row.id, local_world.leader())
    assert (found.row.state, found.row.best) == ("succeeded", sweep.runs[2].job)
    messages = local_world.messages(sweep.runs[1].job)
    assert "Publishing waits for the registry: It is away." in messages
    assert "The best of its sweep, but its adapter can not be published: Its weights are no numbers." in messages


def test_cancelling_ends_all_its_jobs_at_once(world: World) -> None:
    sweep = world.sweep()
    first, second, third = sweep.runs
    world.finish(first.job, 0.5)
    world.start(second.job)
    found = world.sweeps.cancel("acme", sweep.row.id)
    assert (found.row.state, [run.state for run in found.runs]) == (
        "cancelled",
        ["succeeded", "cancelled", "cancelled"],
    )
    assert world.sweeps.cancel("acme", sweep.row.id).row.finished_at == found.row.finished_at
    world.leader().settle()
    assert world.told(sweep.row.id) == ["fine_tuning.sweep.cancelled"]
    assert world.told(third.job) == ["fine_tuning.job.cancelled"]
    assert f"The job was cancelled with its sweep {sweep.row.id}" in world.messages(second.job)
    assert len(models(world, first.job)) == 1
    with pytest.raises(NotFound):
        world.registry.show("acme/dates")
    ended = world.sweep("other", (2, 4))
    world.finish_all(ended, (1.0, 2.0))
    with pytest.raises(WrongState, match="its best adapter is being published"):
        world.sweeps.cancel("acme", ended.row.id)
