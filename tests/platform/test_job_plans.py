"""Jobs are planned before they are queued: what a plan changes, what it refuses, and what a planner's death costs."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.migrations import upgrade
from swapmeet.database.tables import EventRow, JobRow, TenantRow
from swapmeet.database.tables.base import now
from swapmeet.errors import PlanningFailed
from swapmeet.jobs import Jobs
from swapmeet.planning import Answer, Interrupted, Made, Place, Planner, Question, Refusal, needs_of, places
from swapmeet.queue.comparing import compared
from swapmeet.queue.dispatcher import Machine
from swapmeet.queue.placing import lent
from swapmeet.queue.scheduler import Scheduler
from swapmeet.settings import Settings
from swapmeet_registry import open_store
from swapmeet_registry.bases import BaseLibrary
from swapmeet_training.attempts.telling import DataFile, Finished, Order
from swapmeet_training.plan import GPUS, of_accelerator

GIB = 1 << 30
CPU = Machine("node-1", 4.0, 0.0, 8.0 * GIB, 4.0, 8.0 * GIB)
GPU = Machine("node-2", 8.0, 2.0, 64.0 * GIB, 8.0, 64.0 * GIB, 2.0, "L4")
LINES = [
    {"messages": [{"role": "user", "content": f"Who jumps over {n}?"}, {"role": "assistant", "content": f"Fox {n}."}]}
    for n in range(12)
]
DATA = "\n".join(map(json.dumps, LINES)).encode()
PLAN: dict[str, Any] = {
    "steps": 9,
    "trained_tokens": 1200,
    "tokens_per_second": 30.0,
    "memory": {"peak": 3 * 10**9, "needed": 3 * 10**9, "parts": {"base": 2 * 10**9, "overhead": 10**9}},
    "hardware": {"name": "CPU", "kind": "cpu", "memory": 8 * GIB},
    "seconds": 60.0,
    "share": 0.0,
    "settings": {"batch_size": 2, "gradient_accumulation": 4, "gradient_checkpointing": True, "rank": 2},
    "words": ["batch_size is lowered from 8 to 2."],
}
ON_GPU = PLAN | {"hardware": {"name": "L4", "kind": "cuda", "memory": 22 * GIB}, "share": 0.15}


class Cluster:
    """Machines on which nothing runs for long."""

    def __init__(self, *nodes: Machine) -> None:
        self.nodes = list(nodes)
        self.started: list[Order] = []

    def machines(self) -> list[Machine]:
        return self.nodes

    def knows(self, node: str) -> bool:
        return True

    def attempts(self) -> set[str]:
        return {order.job for order in self.started}

    def start(self, order: Order) -> None:
        self.started.append(order)

    def poll(self, heard: Mapping[str, int]) -> dict[str, Any]:
        return {}

    def park(self, job: str) -> None:
        pass

    def end(self, job: str) -> None:
        self.started = [order for order in self.started if order.job != job]


class World:
    """A platform with one tenant and one file, whose planner is the test's."""

    def __init__(
        self, database: Database, folder: Path, job_row: Callable[..., JobRow], keep_file: Callable[..., None]
    ) -> None:
        self.settings, self.database = Settings(home=folder / "home"), database
        self.job_row, self.keep_file = job_row, keep_file
        self.cluster = Cluster(CPU)
        self.announced: list[str] = []
        self.jobs = Jobs(database, self.announce)
        self.leaders: list[Scheduler] = []
        database.write(lambda session: session.merge(TenantRow(name="acme")))
        self.file("file-1", DATA)

    def announce(self, session: Session, tenant: str, kind: str, job: str) -> None:
        self.announced.append(kind)

    def file(self, name: str, data: bytes) -> None:
        self.keep_file(self.database, open_store(self.settings.storage_url), name, data, filename="fox.jsonl")

    def job(self, **changes: Any) -> str:
        settings = {"rank": 2, "batch_size": 8, "epochs": 2, "max_steps": None}
        return self.jobs.create(self.job_row(**{"adapter": "acme/fox", "settings": settings} | changes)).id

    def leader(self, plan: Callable[[Question], Answer]) -> Scheduler:
        """A process that leads from now on."""
        for old in self.leaders:
            old.lease.release()
        new = Scheduler(
            self.settings, self.database, dispatcher=self.cluster, announce=self.announce, plan=plan
        )  # fmt: skip
        self.leaders.append(new)
        assert new.lease.hold()
        return new

    def row(self, job: str) -> JobRow:
        return self.jobs.get("acme", job)

    def rounds(self, leader: Scheduler, done: Callable[[], Any], pause: float = 0.005) -> None:
        deadline = time.monotonic() + (30 if pause < 0.1 else 280)
        while not done():
            assert time.monotonic() < deadline
            assert leader.lease.hold()
            leader.run_once()
            time.sleep(pause)

    def after_planning(self, leader: Scheduler, job: str, pause: float = 0.005) -> JobRow:
        self.rounds(leader, lambda: self.row(job).state != "validating_files", pause)
        return self.row(job)

    def events(self, job: str) -> dict[str, EventRow]:
        return {row.name: row for row in self.jobs.events("acme", job, limit=1000)[0]}

    def close(self) -> None:
        for leader in self.leaders:
            leader._planning.close()
            leader._chores.close()


@pytest.fixture
def world(tmp_path: Path, job_row: Callable[..., JobRow], keep_file: Callable[..., None]) -> Iterator[World]:
    database = Database(f"sqlite:///{tmp_path}/swapmeet.db")
    upgrade(database)
    world = World(database, tmp_path, job_row, keep_file)
    yield world
    world.close()
    database.close()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swapmeet.queue.chores.FIRST_PAUSE", 0.01)


def always(answer: Answer) -> Callable[[Question], Answer]:
    return lambda _: answer


def test_a_plan_is_part_of_its_job(world: World) -> None:
    job, asked = world.job(resources={"cpus": 2.0}), []
    go = threading.Event()

    def plan(question: Question) -> Answer:
        asked.append(question)
        assert go.wait(20)
        return Made(PLAN)

    leader = world.leader(plan)
    world.rounds(leader, lambda: asked)
    leader.run_once()
    assert (world.row(job).state, world.row(job).waits_for) == ("validating_files", "it is being planned")
    go.set()
    row = world.after_planning(leader, job)
    assert row.plan == PLAN
    assert row.resources == {"cpus": 2.0, "gpus": 0.0, "memory": 3 * GIB}
    shrunk = {"batch_size": 2, "gradient_accumulation": 4, "gradient_checkpointing": True}
    assert row.settings == {"rank": 2, "epochs": 2, "max_steps": None, **shrunk}
    (question,) = asked
    assert (question.settings, question.share) == ({"rank": 2, "batch_size": 8, "epochs": 2}, 1.0)
    assert question.places == (Place(None, 2.0, 8 * GIB, True),)
    assert (question.data.key, question.data.sha256) == ("files/file-1", hashlib.sha256(DATA).hexdigest())
    assert world.events(job)["planned"].message == (
        "The plan: 9 steps, 1200 tokens, 3.00 GB of memory on the CPU, about 60 s. batch_size is lowered from 8 to 2."
    )
    world.rounds(leader, lambda: world.cluster.started)
    (order,) = world.cluster.started
    assert (order.resources.cpus, order.memory, order.settings["batch_size"]) == (2.0, 3 * GIB, 2)
    finish = world.row(job).estimated_finish
    assert finish is not None
    assert timedelta(seconds=30) < finish - now() < timedelta(seconds=61)


def test_what_can_not_fit_fails_before_it_waits(world: World) -> None:
    refusal = Refusal("out_of_memory", "The run needs 90 GB at least. What would fit: rank 4.", own=True)
    job = world.job()
    row = world.after_planning(world.leader(always(refusal)), job)
    assert (row.state, row.queued_at, row.attempt) == ("failed", None, 0)
    assert row.error == {"code": "out_of_memory", "message": refusal.message, "param": None}
    assert world.announced == ["fine_tuning.job.failed"]


@pytest.mark.parametrize(("node", "asked", "gpus"), [(CPU, {}, 0), (GPU, {}, 1), (GPU, {"gpus": 0.5}, 0.5)])
def test_what_can_not_be_planned_is_queued_with_a_warning(
    world: World, node: Machine, asked: dict[str, Any], gpus: float
) -> None:
    world.cluster.nodes = [node]
    job = world.job(resources=asked)
    row = world.after_planning(world.leader(always(Refusal("base_invalid", "It is of a new kind.", own=False))), job)
    assert row.queued_at is not None
    assert (row.plan, row.resources["gpus"], row.settings["batch_size"]) == ({}, gpus, 8)
    event = world.events(job)["planned"]
    assert (event.level, event.message.endswith("whether it fits: It is of a new kind.")) == ("warn", True)


@pytest.mark.parametrize(("deaths", "planned"), [(2, True), (100, False)])
def test_a_planner_that_dies_keeps_no_job_up(world: World, deaths: int, planned: bool) -> None:
    tried: list[Question] = []

    def plan(question: Question) -> Answer:
        tried.append(question)
        if len(tried) <= deaths:
            raise PlanningFailed("Planning ended with exit code -9.")
        return Made(PLAN)

    job = world.job()
    row = world.after_planning(world.leader(plan), job)
    assert (row.queued_at is not None, bool(row.plan), len(tried)) == (True, planned, 3)
    assert world.events(job)["planned"].level == ("info" if planned else "warn")


def test_a_long_plan_holds_up_no_other_job_and_a_cancelled_one_is_not_planned(world: World) -> None:
    go, asked = threading.Event(), []

    def plan(question: Question) -> Answer:
        asked.append(question.base)
        assert question.base != "slow" or go.wait(20)
        return Made(PLAN)

    slow, quick = world.job(base="slow"), world.job()
    leader = world.leader(plan)
    assert world.after_planning(leader, quick).queued_at is not None
    others = [world.job(base="slow"), world.job(base="unwanted")]
    world.rounds(leader, lambda: asked.count("slow") == 2)
    for job in others:
        world.jobs.cancel("acme", job)
    leader.run_once()
    go.set()
    assert world.after_planning(leader, slow).plan == PLAN
    leader._planning.close()
    assert "unwanted" not in asked
    assert all(world.row(job).plan == {} for job in others)


def test_the_next_leader_plans_again(world: World) -> None:
    def interrupted(_: Question) -> Answer:
        raise Interrupted

    job, old = world.job(), world.leader(interrupted)
    for _ in range(10):
        old.run_once()
        time.sleep(0.02)
    assert (world.row(job).state, world.events(job).get("planned")) == ("validating_files", None)
    assert world.after_planning(world.leader(always(Made(PLAN))), job).plan == PLAN


def test_a_cluster_without_machines_plans_when_it_has_some(world: World) -> None:
    world.cluster.nodes = []
    job, leader = world.job(), world.leader(always(Made(ON_GPU)))
    leader.run_once()
    assert world.row(job).waits_for == "the cluster has no machine to plan for"
    world.cluster.nodes = [CPU, GPU]
    assert world.after_planning(leader, job).resources == {"cpus": 1.0, "gpus": 0.15, "memory": 0}


@pytest.mark.parametrize(
    ("asked", "machines", "embedded", "expected"),
    [
        ({}, [CPU], True, [Place(None, 1.0, 8 * GIB, True)]),
        ({"memory": GIB}, [CPU], True, [Place(None, 1.0, GIB, False)]),
        ({}, [CPU, GPU], False, [Place("L4", 1.0, 0, False)]),
        ({"gpus": 0}, [CPU, GPU], False, [Place(None, 1.0, 64 * GIB, False)]),
        ({}, [replace(CPU, cpus=0.0, memory=64.0 * GIB), CPU], False, [Place(None, 1.0, 8 * GIB, False)]),  # a head
        ({"cpus": 8}, [CPU, GPU, GPU], False, [Place("L4", 8.0, 0, False)]),
        ({"cpus": 8, "gpus": 0}, [CPU, GPU], False, [Place(None, 8.0, 64 * GIB, False)]),
        (
            {},
            [replace(GPU, gpu_memory=24 * GIB), GPU],
            False,
            [Place("L4", 1.0, 24 * GIB, False), Place("L4", 1.0, 0, False)],
        ),
        ({"gpus": 0.5}, [CPU], False, []),
        ({}, [GPU, GPU, replace(GPU, accelerator="T4"), replace(GPU, accelerator=None)], False, None),
        ({}, [], True, []),
    ],
)
def test_where_runs_may_be_put(
    asked: dict[str, Any], machines: list[Machine], embedded: bool, expected: list[Place] | None
) -> None:
    found = places(asked, machines, embedded=embedded)
    assert list(found) == expected if expected is not None else [place.gpu for place in found] == ["L4", "T4", ""]


@pytest.mark.parametrize(
    ("asked", "plan", "machine", "gpus", "memory"),
    [
        ({}, PLAN, CPU, 0, 3 * GIB),
        ({}, PLAN, replace(CPU, memory=2.9 * GIB), 0, int(2.9 * GIB)),  # what fits is not refused for rounding
        ({}, PLAN, replace(CPU, memory=2.0 * GIB), 0, 0),  # Ray reckons with less than the machine has
        ({"memory": 5 * GIB}, PLAN, CPU, 0, 5 * GIB),
        ({}, ON_GPU, GPU, 0.15, 0),
        ({"gpus": 0.5}, ON_GPU, GPU, 0.5, 0),
        ({}, ON_GPU | {"share": 1.04}, GPU, 1, 0),
    ],
)
def test_what_a_run_takes(
    asked: dict[str, Any], plan: dict[str, Any], machine: Machine, gpus: float, memory: int
) -> None:
    assert needs_of(asked, plan, [machine]) == {"cpus": 1.0, "gpus": gpus, "memory": memory}


def test_gpus_of_engines_are_not_for_jobs() -> None:
    job = JobRow(resources={"cpus": 1, "gpus": 0.5}, node="node-2")
    assert [one.gpus for one in lent([replace(GPU, free_gpus=0.0)], [])] == [0]
    assert [one.gpus for one in lent([replace(GPU, free_gpus=0.5)], [job])] == [1]
    assert [one.gpus for one in lent([replace(GPU, free_gpus=2.0), CPU], [job])] == [2, 0]


def test_a_run_goes_to_gpus_that_it_was_planned_for(world: World) -> None:
    """The first node has the smaller GPUs, and that of an unknown kind is none that it was planned for."""
    t4 = replace(GPU, id="node-0", accelerator="T4")
    world.cluster.nodes = [t4, replace(GPU, id="node-1", accelerator="H20")]
    large = ON_GPU | {"hardware": {"name": "L4", "kind": "cuda", "memory": GPUS["L4"].memory}}
    job, leader = world.job(), world.leader(always(Made(large)))
    world.rounds(leader, lambda: (world.row(job).waits_for or "").startswith("needs 0.15 of a GPU"))
    world.cluster.nodes.append(replace(GPU, id="node-3"))
    world.rounds(leader, lambda: world.cluster.started)
    assert world.cluster.started[0].node == "node-3"


def test_rays_words_for_gpus() -> None:
    words = {"H100": "H100", "A100-80G": "A100-80GB", "A100": "A100-40GB", "GeForce-RTX-4090": "RTX 4090", "L4": "L4"}
    assert {word: found and found.name for word in words if [found := of_accelerator(word)]} == words
    assert [of_accelerator(word) for word in ("H20", "B300", "", "TPU-V4")] == [None] * 4


def test_a_plan_is_held_against_what_was_measured() -> None:
    finished = Finished("key", {}, 9, 1200, 25.04, 1_500_000_000)
    words, figures = compared(PLAN, finished)
    assert words == ": 25 tokens/s, where 30 were planned; 1.50 GB of tensors, where 2.00 were"
    assert figures == {
        "planned": {"tokens_per_second": 30.0, "memory": 2 * 10**9},
        "measured": {"tokens_per_second": 25.0, "memory": 1_500_000_000},
    }
    assert compared({"seconds": 100}, finished) == compared(PLAN, Finished("key", {}, 9, 1200)) == ("", None)


@pytest.mark.slow
def test_real_plans(world: World, tiny_llama: Path, tmp_path: Path) -> None:
    library = BaseLibrary(world.settings.folder)
    library.add(str(tiny_llama))
    planner = Planner(world.settings)
    job, tight = world.job(), world.job(resources={"memory": 64 << 20})
    wrong = world.job(settings={"rank": 2, "target_modules": ["w_none"], "epochs": 1})
    unknown, no_gpu = world.job(base="gone"), world.job(resources={"gpus": 0.5})
    leader = world.leader(planner)
    row = world.after_planning(leader, job, 0.5)
    assert (row.plan["steps"], row.plan["examples"], row.plan["fits"]) == (4, 12, True)
    assert row.resources["memory"] == GIB
    assert row.plan["hardware"]["kind"] == "cpu"
    failed = world.after_planning(leader, tight, 0.5)
    assert failed.error is not None
    assert (failed.state, failed.error["code"]) == ("failed", "out_of_memory")
    failed = world.after_planning(leader, wrong, 0.5)
    assert failed.error is not None
    assert (failed.error["code"], failed.error["param"]) == ("invalid_hyperparameters", "hyperparameters")
    for each in (unknown, no_gpu):
        assert world.after_planning(leader, each, 0.5).plan == {}
        assert world.events(each)["planned"].level == "warn"

    file = DataFile("files/file-1", "fox.jsonl", hashlib.sha256(DATA).hexdigest())
    question = Question("tiny-llama", None, {"epochs": 1}, file, None, (Place(None, 1.0, GIB, False),), 1.0)
    damaged = planner(replace(question, data=replace(file, sha256="0" * 64)))
    assert isinstance(damaged, Refusal)
    assert (damaged.code, damaged.own) == ("corrupt", False)
    threading.Timer(0.5, lambda: [process.kill() for process in planner._started]).start()
    with pytest.raises(PlanningFailed, match="Planning was killed"):
        planner(question)
    threading.Timer(0.5, planner.close).start()
    with pytest.raises(Interrupted):
        planner(question)
