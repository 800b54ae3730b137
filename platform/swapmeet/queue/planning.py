"""Plans for jobs that are to be queued: made meanwhile, and written into their jobs with the move to the queue."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

from sqlalchemy.orm import Session

from swapmeet.database.tables import FileRow, JobRow
from swapmeet.jobs.events import tell
from swapmeet.planning import Answer, Interrupted, Made, Question, Refusal, needs_of, places, question_of
from swapmeet.queue.chores import Chores
from swapmeet.queue.dispatcher import Machine
from swapmeet.queue.validating import Unfit

log = logging.getLogger("swapmeet.queue")

AT_ONCE = 2
"""So many jobs are planned at once, each in a process; nothing else of the queue waits for them."""
TRIES = 3
"""How often planning may fail for no known reason before a job is queued without a plan."""
SHRUNK = ("batch_size", "gradient_accumulation", "gradient_checkpointing")
"""Settings that a plan may change; what is learned stays the same."""
PARAMS = {"invalid_training_file": "training_file", "invalid_hyperparameters": "hyperparameters"}

Plan = Callable[[Question], Answer]
"""Answers a question, however long that takes; `swapmeet.planning.Planner` is one."""


class Planning:
    """Has jobs planned, and keeps the answers until their jobs are queued. All of it can be done again by another.

    Args:
        plan: makes the plans; without, jobs are queued as they are.
        embedded: whether a cluster of one machine is this machine.
        done: called whenever a plan is there.
    """

    def __init__(self, plan: Plan | None, *, embedded: bool, done: Callable[[], object] = lambda: None) -> None:
        self._plan, self._embedded = plan, embedded
        self._chores = Chores(AT_ONCE, done)
        self._answers: dict[str, Answer] = {}
        self._failures: Counter[str] = Counter()
        self._wanted: frozenset[str] = frozenset()

    def keep(self, jobs: Collection[str]) -> None:
        """Plan for these from now on, and forget all others."""
        self._wanted = frozenset(jobs)
        self._answers = {job: answer for job, answer in self._answers.items() if job in self._wanted}
        self._failures = Counter({job: count for job, count in self._failures.items() if job in self._wanted})

    def __call__(self, session: Session, row: JobRow, machines: Sequence[Machine]) -> str | None:
        """Nothing once a job, locked and with checked files, has its plan and what it needs; or what it waits for.

        Raises:
            Unfit: it can not run as it is; with the plan's sentence and code.
        """
        if self._plan is None:
            return None
        if not machines:
            return "the cluster has no machine to plan for"
        answer = self._answers.get(row.id) or self._ask(row.id, self._question(session, row, machines))
        if answer is None:
            return "it is being planned"
        if isinstance(answer, Refusal) and answer.own:
            raise Unfit(answer.message, answer.code, PARAMS.get(answer.code))
        self._answers[row.id] = answer
        write(session, row, answer, machines)
        return None

    def close(self) -> None:
        """Wait for what is under way, and begin nothing more."""
        self._wanted = frozenset()
        self._chores.close()

    def _question(self, session: Session, row: JobRow, machines: Sequence[Machine]) -> Question:
        files = [session.get_one(FileRow, name) for name in (row.training_file, row.validation_file) if name]
        embedded = self._embedded and len(machines) == 1
        found = places(row.resources, machines, embedded=embedded)
        return question_of(row, files[0], files[1] if len(files) > 1 else None, found)

    def _ask(self, job: str, question: Question) -> Answer | None:
        """The answer; None while it is found out, or after a failure, which is counted."""
        try:
            return self._chores.result(job, lambda: self._work(job, question))
        except Interrupted:
            return None
        except Exception as error:
            self._failures[job] += 1
            log.warning("planning %s failed: %s", job, error)
            if self._failures[job] < TRIES:
                return None
            return Refusal("planning_failed", f"Planning failed {TRIES} times, the last so: {error}", own=False)

    def _work(self, job: str, question: Question) -> Answer:
        if job not in self._wanted:  # cancelled while others were planned
            raise Interrupted
        assert self._plan is not None
        return self._plan(question)


def write(session: Session, row: JobRow, answer: Answer, machines: Sequence[Machine]) -> None:
    """Note a plan, the settings that it was made to fit with, and what the run will take of its machine."""
    if isinstance(answer, Refusal):
        row.resources = needs_of(row.resources, None, machines)
        told = f"The job is queued without a plan, so nobody can tell whether it fits: {answer.message}"
        tell(session, row.id, "planned", told, level="warn", data={"code": answer.code})
        return
    assert isinstance(answer, Made)
    plan = dict(answer.plan)
    row.plan, row.resources = plan, needs_of(row.resources, plan, machines)
    row.settings = row.settings | {name: plan["settings"][name] for name in SHRUNK}
    data = {"plan": plan, "resources": row.resources, "seconds": answer.seconds}
    tell(session, row.id, "planned", in_words(plan), data=data)


def in_words(plan: dict[str, Any]) -> str:
    """A plan in a few sentences."""
    hardware = "the CPU" if plan["hardware"]["kind"] == "cpu" else plan["hardware"]["name"]
    share = f" ({100 * min(plan['share'], 1):.0f} % of it)" if plan["share"] else ""
    first = (
        f"The plan: {plan['steps']} steps, {plan['trained_tokens']} tokens, {gb(plan['memory']['needed'])} of memory "
        f"on {hardware}{share}, about {_length(plan['seconds'])}."
    )
    return " ".join([first, *plan["words"]])


def gb(size: float) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.2f} GB"


def _length(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
