"""The leader's part of sweeps: publish the best of those that are trained, and remove what the others left.

Each step can be done again by whoever leads next: which is the best follows from jobs that have ended; publishing
gives the version that the same job made before; and what is to be removed is looked for until it is noted as done.
"""

from collections.abc import Callable

from sqlalchemy import Select, delete, exists, select, update
from sqlalchemy.orm import Session

from swapmeet.database.tables import CheckpointRow, JobRow, SweepRow, SweepRunRow
from swapmeet.database.tables.base import now
from swapmeet.jobs.ending import Announce
from swapmeet.jobs.events import tell
from swapmeet.jobs.publishing import Kept, Publisher
from swapmeet.queue.chores import Chores
from swapmeet.queue.leading import Leading
from swapmeet.queue.listening import apart
from swapmeet.sweeps.runs import Run, best_of, why_none
from swapmeet.sweeps.sweeps import ENDS, SweepState, runs_of
from swapmeet.tenancy.stocktaking import note_published
from swapmeet_registry import RegistryError, StoreError

CLEARED_AT_ONCE = 20
"""So many sweeps at most are cleared in one round."""


class Settler:
    """Ends sweeps whose jobs have all ended.

    Args:
        leading: the leader's transactions.
        chores: where publishing and removing is done.
        publisher: what does it.
        announce: told of each end of a sweep, in its transaction.
    """

    def __init__(self, leading: Leading, chores: Chores, publisher: Publisher, announce: Announce) -> None:
        self._leading, self._chores, self._publisher, self._announce = leading, chores, publisher, announce

    def settle(self) -> None:
        """One round.

        Raises:
            LeaseLost: another leads; nothing was written since.
            DatabaseFailed: the database is away.
        """
        for sweep in self._rows(_trained()):
            with apart(sweep):
                self._end(sweep)
        for sweep in self._rows(_uncleared()):
            with apart(sweep):
                self._clear(sweep)

    def _rows(self, query: Select[SweepRow]) -> list[SweepRow]:
        return self._leading.database.read(lambda session: list(session.scalars(query)))

    def _end(self, sweep: SweepRow) -> None:
        runs = self._leading.database.read(lambda session: runs_of(session, [sweep.id]))[sweep.id]
        best = best_of(sweep.metric, runs)
        if best is None:
            self._fail(sweep, why_none(sweep.metric, runs))
            return
        kept = self._publish(sweep, best)
        if kept is not None:
            self._succeed(sweep, best, runs, kept)

    def _publish(self, sweep: SweepRow, best: Run) -> Kept | None:
        """The version that the best one became; None where that is under way, or it can not be, and another is to."""
        job = self._leading.database.read(lambda session: session.get_one(JobRow, best.job))
        adapter = best.adapter
        assert adapter is not None
        try:
            return self._chores.result(f"{sweep.id}/publish", lambda: self._publisher.kept(job, adapter))
        except StoreError as error:
            message = f"Publishing waits for the registry: {error}"
            self._leading.write(lambda session: tell(session, job.id, "publish-best", message, level="warn"))
        except RegistryError as error:
            self._pass_over(job, f"The best of its sweep, but its adapter can not be published: {error}")
        return None

    def _pass_over(self, job: JobRow, message: str) -> None:
        """Leave the next best to be published."""

        def work(session: Session) -> None:
            session.scalars(select(SweepRunRow).where(SweepRunRow.job == job.id)).one().adapter = None
            tell(session, job.id, "unpublished", message, level="error")

        self._leading.write(work)

    def _succeed(self, sweep: SweepRow, best: Run, runs: tuple[Run, ...], kept: Kept) -> None:
        version = kept.version

        def work(session: Session, row: SweepRow) -> None:
            note_published(session, row.tenant, kept.bytes)
            row.best, row.fine_tuned_model = best.job, str(version)
            session.get_one(JobRow, best.job, with_for_update=True).fine_tuned_model = str(version)
            figure = f"{row.metric} {best.metrics[row.metric]:.4g}"
            told = f"The best of {len(runs)} configurations ({figure}). New fine-tuned model created: {version}"
            tell(session, best.job, "model", told, data={"model": str(version), "sweep": row.id})
            for run in runs:
                if run.job != best.job:
                    told = f"Configuration {best.number} is the best of the sweep ({figure}); this one's adapter goes"
                    tell(session, run.job, "outdone", told, data={"sweep": row.id, "best": best.job})

        self._finish(sweep, SweepState.SUCCEEDED, work)

    def _fail(self, sweep: SweepRow, message: str) -> None:
        def work(_session: Session, row: SweepRow) -> None:
            row.error = {"code": "sweep_failed", "message": message, "param": None}

        self._finish(sweep, SweepState.FAILED, work)

    def _finish(self, sweep: SweepRow, state: SweepState, work: Callable[[Session, SweepRow], None]) -> None:
        """End a sweep, unless that was done before."""

        def end(session: Session) -> None:
            row = session.get_one(SweepRow, sweep.id, with_for_update=True)
            if row.state == SweepState.RUNNING:
                row.state, row.finished_at = state, now()
                work(session, row)
                self._announce(session, row.tenant, f"fine_tuning.sweep.{state}", row.id)

        self._leading.write(end)

    def _clear(self, sweep: SweepRow) -> None:
        """Remove what all but the best left in the storage, and their checkpoints as models; their figures stay."""
        others = select(JobRow).where(JobRow.sweep == sweep.id, JobRow.id != sweep.best).order_by(JobRow.id)
        jobs = self._leading.database.read(lambda session: list(session.scalars(others)))
        ids = [job.id for job in jobs]

        def remove() -> bool:
            models = select(CheckpointRow.job, CheckpointRow.model).where(CheckpointRow.job.in_(ids))
            for job, model in self._leading.database.read(lambda session: session.execute(models).all()):
                told = f"Another configuration of the sweep {sweep.id} is better than {job}."
                self._publisher.withdraw(model, told, job)
            for job in ids:
                self._publisher.discard(job)
            return True

        def note(session: Session) -> None:
            session.execute(delete(CheckpointRow).where(CheckpointRow.job.in_(ids)))
            for run in session.scalars(select(SweepRunRow).where(SweepRunRow.job.in_(ids))):
                run.adapter = None
            session.execute(update(JobRow).where(JobRow.id.in_(ids)).values(kept_bytes=0))
            session.get_one(SweepRow, sweep.id, with_for_update=True).cleared_at = now()

        if self._chores.result(f"{sweep.id}/clear", remove):
            self._leading.write(note)


def _trained() -> Select[SweepRow]:
    """The sweeps whose jobs have all ended."""
    under_way = exists().where(JobRow.sweep == SweepRow.id, JobRow.state.not_in(ENDS))
    return select(SweepRow).where(SweepRow.state == SweepState.RUNNING, ~under_way).order_by(SweepRow.created_at)


def _uncleared() -> Select[SweepRow]:
    ended = select(SweepRow).where(SweepRow.state == SweepState.SUCCEEDED, SweepRow.cleared_at.is_(None))
    return ended.order_by(SweepRow.finished_at).limit(CLEARED_AT_ONCE)
