"""The loop of whoever leads the queue. `Scheduler.run_once` is the architecture: all else hangs from it."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.tables import FileRow, JobRow
from swapmeet.database.tables.base import now
from swapmeet.errors import DatabaseFailed, LeaseLost
from swapmeet.jobs.ending import Announce, announce_nothing, fail, move
from swapmeet.jobs.events import tell
from swapmeet.jobs.publishing import Publisher
from swapmeet.jobs.states import Move, State, Wanted
from swapmeet.queue.chores import Chores
from swapmeet.queue.dispatcher import Dispatcher, RayDispatcher
from swapmeet.queue.leading import Leading
from swapmeet.queue.lease import SCHEDULER, Lease
from swapmeet.queue.listening import Listener, apart
from swapmeet.queue.orders import order_of
from swapmeet.queue.placing import Placing, lent, planned_finish, waits_in_words
from swapmeet.queue.planning import Plan, Planning
from swapmeet.queue.recording import lose
from swapmeet.queue.records import Promise, Start, Wait
from swapmeet.queue.validating import Settle, Unfit, Validator, settle_nothing
from swapmeet.settings import Settings
from swapmeet.sweeps.settling import Settler

log = logging.getLogger("swapmeet.queue")

ROUND_SECONDS = 0.5
WAKES_SECONDS = 0.05
"""Within so many seconds a round follows what a round waited for."""
GRACE = 15.0
"""Seconds within which an attempt that was started must be seen in the cluster."""
START_LIMIT = 600.0
"""Seconds within which its worker must be up."""
EXPLAINED = 200
"""Of so many jobs at most is it noted in one round why they wait."""


class Scheduler:
    """Brings every job to its end, whoever dies meanwhile.

    Any number may serve at once, each in its own process; one of them leads, and each of its writes fails if it does
    not lead any more. All that it knows is in SQL, in the storage and in the cluster, so the next one goes on with it.

    Args:
        settings: where storage, registry, bases and Ray are.
        database: the jobs.
        dispatcher: the cluster; Ray where none is given.
        announce: told of each end of a job, in its transaction.
        plan: answers what a job will need; without it, jobs are queued as they were asked for.
        settle: makes what only follows from a job's checked files, and refuses what does not suit them.
        holder: who this is, for people to read.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        dispatcher: Dispatcher | None = None,
        announce: Announce = announce_nothing,
        settle: Settle = settle_nothing,
        plan: Plan | None = None,
        holder: str = "scheduler",
    ) -> None:
        self.lease = Lease(database, SCHEDULER, holder)
        self._leading = Leading(database, self.lease)
        self._settings, self._database, self._announce = settings, database, announce
        self._validator = Validator(settle)
        self._woken = threading.Event()
        self._planning = Planning(plan, embedded=not settings.ray_address, done=self._woken.set)
        self._cluster = dispatcher or RayDispatcher(settings.storage_url)
        self._chores = Chores()
        self._publisher = Publisher(settings, database)
        self._listener = Listener(self._leading, self._cluster, self._chores, self._publisher, announce)
        self._settler = Settler(self._leading, self._chores, self._publisher, announce)
        self._promises: dict[str, Promise] = {}
        self._parking: set[tuple[str, int]] = set()
        self._leaving = False

    def run_once(self) -> None:
        """One round of the leader's.

        Raises:
            LeaseLost: another leads; nothing was written since.
            DatabaseFailed: the database is away; the next round goes on.
        """
        attempts = self._cluster.attempts()  # before the rows: each of these was in a row before it was started
        running = self._recover(attempts, self._leading.rows(State.RUNNING))
        self._listener.listen(running)
        self._settler.settle()
        self._obey(self._leading.rows(State.RUNNING))
        if not self._leaving:
            self._validate(self._leading.rows(State.VALIDATING))
            self._place()

    def serve(self, stop: threading.Event) -> None:
        """Stand by, and lead when nobody else does, until `stop`; then leave what runs as `leave` says."""
        with self.lease:
            while not self._pause(stop):
                self._round()
            if self.lease.leads and not self._settings.ray_address:
                self.leave(self._settings.drain)
        self._planning.close()
        self._chores.close()

    def _pause(self, stop: threading.Event) -> bool:
        """Wait for the next round's time, or for what it is to go on with; whether to stop instead."""
        until = time.monotonic() + ROUND_SECONDS
        while not stop.wait(WAKES_SECONDS):
            if self._woken.is_set() or time.monotonic() >= until:
                self._woken.clear()
                return False
        return True

    def leave(self, seconds: float) -> None:
        """Park what runs, because the cluster ends with this process; what takes longer goes on from its checkpoint."""
        self._leaving = True
        deadline = time.monotonic() + seconds
        try:
            for row in self._leading.rows(State.RUNNING):
                self._park(row, "The server stops; the run goes on when it is back")
            while self._leading.rows(State.RUNNING) and time.monotonic() < deadline:
                self._round()
                time.sleep(ROUND_SECONDS / 4)
        except (DatabaseFailed, LeaseLost) as error:
            log.warning("what runs could not be parked: %s", error)

    def _round(self) -> None:
        if not self.lease.leads:
            return
        try:
            self.run_once()
        except LeaseLost:
            log.info("this instance leads the queue no more")
        except DatabaseFailed as error:
            log.warning("the queue waits for the database: %s", error)
        except Exception:
            log.exception("a round of the queue failed; the next one goes on")

    def _recover(self, attempts: set[str], rows: Sequence[JobRow]) -> list[JobRow]:
        """End attempts that no job wants, give up those that are gone; gives the jobs whose attempts are there."""
        for job in attempts - {row.id for row in rows}:
            self._listener.end(job)
        alive = {machine.id for machine in self._cluster.machines()}
        there = []
        for row in rows:
            if row.id in attempts and row.node in alive:
                there.append(row)
            elif reason := self._why_lost(row, alive):
                self._lose(row, *reason)
        return there

    def _why_lost(self, row: JobRow, alive: set[str]) -> tuple[str, bool] | None:
        """What became of an attempt that is not there, and whether the job may have caused it; None: it is to come."""
        if row.node is None or not self._cluster.knows(row.node):
            return "the cluster that it ran on is gone.", False
        if row.node not in alive:
            return "its machine was lost.", True
        if row.attempt_at is not None and (now() - row.attempt_at).total_seconds() < GRACE:
            return None
        return "its process died.", True

    def _obey(self, rows: Sequence[JobRow]) -> None:
        """Park what is to pause; what was cancelled has ended in `_recover`. Give up what does not get going."""
        self._parking = {(row.id, row.attempt) for row in rows} & self._parking
        for row in rows:
            if row.wanted == Wanted.PAUSE:
                self._cluster.park(row.id)
            if self._listener.silent(row):
                self._lose(row, "its process does not answer any more.", True)
            elif row.heard == 0 and row.attempt_at and (now() - row.attempt_at).total_seconds() > START_LIMIT:
                self._lose(row, "its worker found no room on its machine.", False)

    def _validate(self, rows: Sequence[JobRow]) -> None:
        """Queue the jobs whose files were found good and that were planned, and fail those that can not run."""
        self._planning.keep([row.id for row in rows])
        machines = lent(self._cluster.machines(), self._leading.rows(State.RUNNING)) if rows else []

        def judge(session: Session, row: JobRow) -> None:
            try:
                if wait := self._validator(session, row) or self._planning(session, row, machines):
                    row.waits_for = wait
                    return
            except Unfit as error:
                fail(session, row, error.code, str(error), self._announce, error.param)
                return
            move(session, row, Move.VALIDATE)
            tell(session, row.id, "queued", "Files validated, moving job to queued state")

        for each in self._leading.change_all(rows, State.VALIDATING, judge):
            with apart(each):
                self._leading.change(each, State.VALIDATING, judge)

    def _place(self) -> None:
        """Ask the policy who runs next, and do what it says."""
        waiting = [row for row in self._leading.rows(State.QUEUED) if row.not_before is None or row.not_before <= now()]
        if not waiting:
            self._promises = {}
            return
        placing = Placing(self._cluster.machines(), waiting, self._leading.rows(State.RUNNING), self._parking)
        decision = self._database.read(lambda session: placing.decide(session, time.time(), self._promises))
        self._promises = decision.promises
        for start in decision.starts:
            with apart(placing.waiting[start.job]):
                self._start(placing.waiting[start.job], start)
        for job in decision.preempts:
            why = decision.because.get(job, "another job needs its place")
            self._park(placing.running[job], f"The run makes room and waits for its turn again: {why}")
        self._explain(placing.waiting, decision.waits)

    def _start(self, row: JobRow, start: Start) -> None:
        def begin(session: Session, row: JobRow) -> Callable[[], None]:
            files = [session.get(FileRow, name) for name in (row.training_file, row.validation_file) if name]
            move(session, row, Move.START)
            row.attempt, row.attempt_at, row.node = row.attempt + 1, now(), start.node
            row.started_at = row.started_at or row.attempt_at
            row.heard, row.heard_at, row.not_before, row.waits_for = 0, None, None, None
            row.estimated_finish = planned_finish(row)
            tell(session, row.id, "started", "Fine-tuning job started")
            order = order_of(self._settings, row, files)
            return lambda: self._cluster.start(order)

        if (go := self._leading.change(row, State.QUEUED, begin)) is not None:
            go()

    def _park(self, row: JobRow, why: str) -> None:
        if (row.id, row.attempt) in self._parking:
            return

        def explain(session: Session, row: JobRow) -> None:
            tell(session, row.id, f"parking-{row.attempt}", why)

        self._leading.change(row, State.RUNNING, explain)
        self._parking.add((row.id, row.attempt))
        self._cluster.park(row.id)

    def _explain(self, waiting: Mapping[str, JobRow], waits: Mapping[str, Wait]) -> None:
        """Note why jobs wait, as far as it is another reason than before; the rest in the next rounds."""
        words = {job: waits_in_words(waiting[job], wait) for job, wait in waits.items()}
        changed = [job for job in words if words[job][0] != waiting[job].waits_for][:EXPLAINED]

        def write(session: Session) -> None:
            for job in changed:
                found = session.get_one(JobRow, job, with_for_update=True)
                if found.state == State.QUEUED:
                    found.waits_for, found.estimated_finish = words[job]

        if changed:
            self._leading.write(write)

    def _lose(self, row: JobRow, reason: str, blamed: bool) -> None:
        """Give an attempt up, and only then, as somebody who still leads, end what there is of it."""

        def give_up(session: Session, found: JobRow) -> None:
            if found.attempt == row.attempt:
                lose(session, found, "worker_lost", reason.capitalize(), self._announce, blamed=blamed)

        self._leading.change(row, State.RUNNING, give_up)
        self._listener.end(row.id)
