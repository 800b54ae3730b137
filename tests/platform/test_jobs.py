"""Jobs as their callers see them: no job twice, none of another tenant's, no move that its state forbids."""

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import select
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.tables import CheckpointRow, EventRow, JobRow, TenantRow, UsageRow
from swapmeet.database.tables.base import now
from swapmeet.errors import JobNotFound, WrongState
from swapmeet.jobs import Jobs
from swapmeet.jobs.ending import fail, move
from swapmeet.jobs.states import Move, Standing, State, Wanted, after


def job_row(tenant: str = "acme", **changes: Any) -> JobRow:
    values: dict[str, Any] = {
        "id": f"ftjob-{uuid4().hex[:24]}",
        "tenant": tenant,
        "created_by": "key_1",
        "created_at": now(),
        "request_digest": uuid4().hex,
        "model": "tiny",
        "base": "tiny",
        "adapter": f"{tenant}/dates",
        "training_file": "file-1",
        "method": "supervised",
        "seed": 1,
        "hyperparameters": {},
        "lora": {},
        "settings": {},
        "resources": {"cpus": 1, "gpus": 0.5, "memory": 0},
        "plan": {},
        "job_metadata": {},
        "integrations": [],
    }
    return JobRow(**values | changes)


@pytest.fixture
def jobs(database: Database) -> Jobs:
    database.write(lambda session: session.add_all([TenantRow(name="acme"), TenantRow(name="other")]))
    return Jobs(database)


def change(database: Database, job: str, work: Callable[[Session, JobRow], Any]) -> Any:
    return database.write(lambda session: work(session, session.get_one(JobRow, job, with_for_update=True)))


def messages(jobs: Jobs, job: str) -> list[str]:
    return [row.message for row in reversed(jobs.events("acme", job, limit=100)[0])]


def test_a_new_job_waits_for_its_files_to_be_checked(jobs: Jobs) -> None:
    row = jobs.create(job_row(training_file="file-7"))
    assert (row.state, row.wanted, row.attempt) == ("validating_files", "run", 0)
    assert jobs.get("acme", row.id).created_at == row.created_at
    assert messages(jobs, row.id) == [f"Created fine-tuning job: {row.id}", "Validating training file: file-7"]


def test_a_repeated_request_makes_no_second_job(jobs: Jobs) -> None:
    first = jobs.create(job_row(request_digest="a"))
    assert jobs.create(job_row(request_digest="a")).id == first.id
    assert jobs.create(first).id == first.id
    others = [job_row(request_digest="b"), job_row("other", request_digest="a")]
    assert first.id not in {jobs.create(row).id for row in others}
    assert len(jobs.page("acme")[0]) == 2


def test_the_same_request_later_or_after_a_cancel_makes_another(jobs: Jobs) -> None:
    old = jobs.create(job_row(request_digest="a", created_at=now() - timedelta(minutes=11)))
    new = jobs.create(job_row(request_digest="a"))
    assert new.id != old.id
    jobs.cancel("acme", new.id)
    assert jobs.create(job_row(request_digest="a")).id not in (old.id, new.id)


def test_requests_at_the_same_moment_make_one_job(jobs: Jobs) -> None:
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda: made.append(jobs.create(job_row(request_digest="a")).id)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len(set(made)) == 1


def test_pages_are_newest_first_and_miss_nothing(jobs: Jobs) -> None:
    moment = now()
    made = [jobs.create(job_row(created_at=moment - timedelta(seconds=n // 2), id=f"ftjob-{9 - n}")) for n in range(7)]
    jobs.create(job_row("other"))
    pages, last, more = [], None, True
    while more:
        rows, more = jobs.page("acme", last, 3)
        pages.append([row.id for row in rows])
        last = rows[-1].id
    assert pages == [["ftjob-9", "ftjob-8", "ftjob-7"], ["ftjob-6", "ftjob-5", "ftjob-4"], ["ftjob-3"]]
    assert len(made) == 7
    assert jobs.page("acme", limit=7)[1] is False


@pytest.mark.parametrize("key", ["team", 'a"b', "a.b", "$", "ключ", "a'b; --", "[0]", " "])
def test_metadata_filters_take_any_key(jobs: Jobs, key: str) -> None:
    wanted = jobs.create(job_row(job_metadata={key: "x", "more": "y"}))
    jobs.create(job_row(job_metadata={key: "z"}))
    jobs.create(job_row())
    assert [row.id for row in jobs.page("acme", metadata={key: "x"})[0]] == [wanted.id]
    assert [row.id for row in jobs.page("acme", metadata={key: "x", "more": "y"})[0]] == [wanted.id]
    assert jobs.page("acme", metadata={key: "x", "more": "n"}) == ([], False)


def test_another_tenants_job_is_not_there(jobs: Jobs) -> None:
    row = jobs.create(job_row())
    mistakes = []
    for call in (
        lambda: jobs.get("other", row.id),
        lambda: jobs.cancel("other", row.id),
        lambda: jobs.pause("other", row.id),
        lambda: jobs.resume("other", row.id),
        lambda: jobs.events("other", row.id),
        lambda: jobs.checkpoints("other", row.id),
        lambda: jobs.page("other", row.id),
    ):
        with pytest.raises(JobNotFound) as raised:
            call()
        mistakes.append(str(raised.value))
    with pytest.raises(JobNotFound) as missing:
        jobs.get("other", "ftjob-none")
    assert {mistake.replace(row.id, "ftjob-none") for mistake in mistakes} == {str(missing.value)}
    assert jobs.get(None, row.id).state == "validating_files"


@pytest.mark.parametrize("odd", ["\0", "\ud800", "x" * 5000, "'; DROP TABLE jobs; --", "", "ftjob-\u202e"])
def test_no_text_breaks_a_look_up(jobs: Jobs, odd: str) -> None:
    row = jobs.create(job_row())
    for call in (
        lambda: jobs.get("acme", odd),
        lambda: jobs.cancel("acme", odd),
        lambda: jobs.page("acme", odd),
        lambda: jobs.events("acme", row.id, after=odd),
        lambda: jobs.checkpoints("acme", odd),
    ):
        with pytest.raises(JobNotFound) as raised:
            call()
        assert len(str(raised.value)) < 400
    assert jobs.page("acme", metadata={odd: "x"}) == jobs.page("acme", metadata={"x": odd}) == ([], False)


def test_an_event_is_told_once(jobs: Jobs, database: Database) -> None:
    row = jobs.create(job_row())

    def twice(session: Session) -> None:
        for message in ("first", "second"):
            jobs.tell(session, row.id, "step-1", message, type="metrics", data={"step": 1})

    database.write(twice)
    database.write(twice)
    (event, *_), _ = jobs.events("acme", row.id)
    assert (event.message, event.type, event.level, event.data) == ("first", "metrics", "info", {"step": 1})
    assert len(jobs.events("acme", row.id)[0]) == 3


def test_events_and_checkpoints_are_paged_from_an_id(jobs: Jobs, database: Database) -> None:
    row = jobs.create(job_row())
    checkpoints = [
        CheckpointRow(id=f"ftckpt_{n}", job=row.id, step=n, model="m", digest="d", metrics={}) for n in (1, 2, 3)
    ]
    database.write(lambda session: session.add_all(session.merge(one) for one in checkpoints))
    first, more = jobs.checkpoints("acme", row.id, limit=2)
    assert ([one.step for one in first], more) == ([3, 2], True)
    assert [one.step for one in jobs.checkpoints("acme", row.id, after=first[-1].id)[0]] == [1]
    newest = jobs.events("acme", row.id, limit=1)[0][0]
    assert [event.name for event in jobs.events("acme", row.id, after=newest.id)[0]] == ["created"]
    with pytest.raises(JobNotFound, match="has no 'ftevent-none'"):
        jobs.events("acme", row.id, after="ftevent-none")


def test_a_running_job_pauses_once_it_has_parked_and_an_attempt_is_paid_for(jobs: Jobs, database: Database) -> None:
    row = jobs.create(job_row())
    change(database, row.id, lambda session, job: move(session, job, Move.VALIDATE))

    def start(session: Session, job: JobRow) -> None:
        move(session, job, Move.START)
        job.attempt, job.attempt_at = job.attempt + 1, now() - timedelta(seconds=100)

    def park(session: Session, job: JobRow) -> None:
        job.trained_tokens += 500
        move(session, job, Move.PARK)

    change(database, row.id, start)
    assert jobs.pause("acme", row.id).state == "running"
    change(database, row.id, park)
    assert jobs.get("acme", row.id).state == "paused"
    assert jobs.resume("acme", row.id).state == "queued"
    change(database, row.id, start)
    change(database, row.id, park)
    used = database.read(lambda session: list(session.scalars(select(UsageRow).order_by(UsageRow.id))))
    found = [(one.source, one.kind, one.amount, one.tenant, one.key) for one in used]
    assert found == [
        (f"{row.id}/{attempt}", kind, amount, "acme", "key_1")
        for attempt in (1, 2)
        for kind, amount in (("training_tokens", 500), ("gpu_seconds", 50), ("cpu_seconds", 100))
    ]
    assert jobs.get("acme", row.id).gpu_seconds == 100


def test_an_attempt_that_was_lost_is_paid_for_as_long_as_it_answered(jobs: Jobs, database: Database) -> None:
    row = jobs.create(job_row())

    def lose(session: Session, job: JobRow) -> None:
        move(session, job, Move.VALIDATE)
        move(session, job, Move.START)
        job.attempt, job.attempt_at, job.heard_at = 1, now() - timedelta(hours=2), now() - timedelta(hours=1)
        session.flush()
        move(session, job, Move.LOSE)

    change(database, row.id, lose)
    assert jobs.get("acme", row.id).gpu_seconds == 1800


def test_the_end_of_a_job_is_announced_once_with_it(database: Database) -> None:
    told: list[tuple[str, str, str]] = []
    database.write(lambda session: session.add(TenantRow(name="acme")))
    jobs = Jobs(database, lambda session, tenant, kind, job: told.append((tenant, kind, job)))
    first, second = jobs.create(job_row()), jobs.create(job_row())
    for _ in range(2):
        assert jobs.cancel("acme", first.id).finished_at is not None
    change(
        database,
        second.id,
        lambda session, job: fail(session, job, "invalid_training_file", "Line 3 is bad.", jobs._announce),
    )
    assert told == [("acme", "fine_tuning.job.cancelled", first.id), ("acme", "fine_tuning.job.failed", second.id)]
    assert jobs.get("acme", second.id).error == {
        "code": "invalid_training_file",
        "message": "Line 3 is bad.",
        "param": None,
    }


def test_what_a_state_forbids_is_refused_with_a_way_out(jobs: Jobs) -> None:
    row = jobs.create(job_row())
    with pytest.raises(WrongState, match=r"validating_files and can not be resumed. Only a paused job"):
        jobs.resume("acme", row.id)
    assert jobs.pause("acme", row.id).state == jobs.pause("acme", row.id).state == "paused"
    assert jobs.resume("acme", row.id).state == "validating_files"
    assert jobs.cancel("acme", row.id).state == jobs.cancel("acme", row.id).state == "cancelled"
    for call in (jobs.pause, jobs.resume):
        with pytest.raises(WrongState, match=r"is cancelled and can not be .* Create a new job"):
            call("acme", row.id)
    assert sum("cancelled" in message for message in messages(jobs, row.id)) == 1


def test_no_move_leaves_an_end_and_each_state_has_a_way_to_one() -> None:
    for state in State:
        for wanted in Wanted:
            reached = set()
            for how in Move:
                with suppress(WrongState):
                    reached.add(after(how, Standing(state, wanted, True)).state)
            assert reached <= {state} if state.ended else State.CANCELLED in reached


class Model(RuleBasedStateMachine):
    """Random callers and a random queue on one tenant's jobs, beside a model in plain Python."""

    database: Database
    made = Bundle("made")

    @initialize()
    def begin(self) -> None:
        self.tenant = f"t{uuid4().hex[:20]}"
        self.announced: list[str] = []
        self.jobs = Jobs(self.database, lambda session, tenant, kind, job: self.announced.append(job))
        self.database.write(lambda session: session.add(TenantRow(name=self.tenant)))
        self.model: dict[str, Standing] = {}
        self.digests: dict[str, str] = {}

    @rule(target=made, digest=st.sampled_from("abc"))
    def create(self, digest: str) -> str:
        row = self.jobs.create(job_row(self.tenant, request_digest=digest))
        alive = [
            job
            for job, one in self.model.items()
            if self.digests[job] == digest and one.state not in (State.FAILED, State.CANCELLED)
        ]
        if alive:
            assert row.id in alive
        else:
            assert row.id not in self.model
            self.model[row.id], self.digests[row.id] = Standing(State.VALIDATING), digest
        return row.id

    @rule(job=made, how=st.sampled_from(list(Move)))
    def go(self, job: str, how: Move) -> None:
        by_caller = {Move.CANCEL: self.jobs.cancel, Move.PAUSE: self.jobs.pause, Move.RESUME: self.jobs.resume}
        try:
            expected = after(how, self.model[job])
        except WrongState:
            expected = None
        try:
            if how in by_caller:
                by_caller[how](self.tenant, job)
            else:
                change(self.database, job, lambda session, row: move(session, row, how, self.jobs._announce))
        except WrongState:
            assert expected is None
        else:
            assert expected is not None
            self.model[job] = expected

    @invariant()
    def the_same(self) -> None:
        rows, more = self.jobs.page(self.tenant, limit=100)
        assert not more
        found = {row.id: Standing(State(row.state), Wanted(row.wanted), row.queued_at is not None) for row in rows}
        assert found == self.model
        assert sorted(self.announced) == sorted(job for job, one in self.model.items() if one.state.ended)
        assert all((row.finished_at is None) != State(row.state).ended for row in rows)


def test_callers_and_queue_in_any_order(database: Database) -> None:
    Model.database = database
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Model,
        settings=settings(
            max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    events = database.read(lambda session: session.scalars(select(EventRow.name)).all())
    assert events
