"""What runs leave in the storage, removed when nothing goes on from it any more.

A job that succeeded needs its checkpoints and the copy of its adapter no more: the registry has its versions with bytes
of their own. Its logs and losses stay. Of one that failed or was cancelled everything stays for a time, to be looked
at, and then goes. Jobs that have not ended are left alone, and a job that has ended never begins again.
"""

import logging
from datetime import timedelta

from sqlalchemy import and_, exists, or_, select
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.tables import JobRow, SweepRow
from swapmeet.database.tables.base import now
from swapmeet.jobs.events import tell
from swapmeet.jobs.states import State
from swapmeet_registry import StoreError
from swapmeet_registry.stores import Store
from swapmeet_training.attempts.run_storage import RunStorage

log = logging.getLogger("swapmeet.retention")

SETTLED = timedelta(hours=1)
"""So long after its success a job's attempt is surely gone, and writes nothing more."""
AT_ONCE = 100


def clear(database: Database, store: Store, kept: timedelta | None) -> None:
    """Clear the storage of what ended jobs left; may be done by several at once, and again.

    Args:
        database: the jobs.
        store: where their runs are.
        kept: how long what failed and cancelled jobs left is kept; None for ever.
    """
    ended = and_(JobRow.state == State.SUCCEEDED, JobRow.finished_at < now() - SETTLED)
    if kept is not None:
        failed = JobRow.state.in_([State.FAILED, State.CANCELLED])
        ended = or_(ended, and_(failed, JobRow.finished_at < now() - max(kept, SETTLED)))
    undecided = exists().where(SweepRow.id == JobRow.sweep, SweepRow.finished_at.is_(None))  # may need its adapter
    query = select(JobRow.id, JobRow.state).where(JobRow.cleared_at.is_(None), ended, ~undecided)
    query = query.order_by(JobRow.finished_at)
    done: set[str] = set()
    while True:
        rows = database.read(lambda session: session.execute(query.limit(AT_ONCE)).all())
        if not (left := [(job, state) for job, state in rows if job not in done]):
            return
        for job, state in left:
            done.add(job)
            try:
                _clear(database, store, job, whole=state != State.SUCCEEDED)
            except StoreError as error:
                log.warning("what %s left could not be removed, to be tried again: %s", job, error)


def kept_bytes(runs: RunStorage) -> int:
    """The bytes of a job's checkpoints, by their manifests."""
    found = [contents for key in runs.checkpoints() if (contents := runs.contents(key))]
    return sum(entry.size for each in found for entry in (*each.files, each.history) if entry)


def clear_copies(store: Store, job: str, *, whole: bool = False) -> bool:
    """Remove a job's checkpoints and adapter from the storage, or all that is there; whether there was something."""
    prefix = f"runs/{job}/"
    removed = [key for key in store.list(prefix) if whole or _is_copy(key.removeprefix(prefix))]
    for key in removed:  # sorted, so a manifest goes before the files that it names
        store.delete(key)
    return bool(removed)


def _clear(database: Database, store: Store, job: str, *, whole: bool) -> None:
    removed = clear_copies(store, job, whole=whole)

    def note(session: Session) -> None:
        row = session.get_one(JobRow, job, with_for_update=True)
        if row.cleared_at is None:
            row.cleared_at, row.kept_bytes = now(), 0
            if whole and removed:
                told = "The checkpoints and logs of the job were removed from the storage, where they had been kept"
                tell(session, job, "cleared", told)

    database.write(note)


def _is_copy(path: str) -> bool:
    """Whether an object of an attempt, `ATTEMPT/…`, is of a checkpoint or of the finished adapter."""
    return path.partition("/")[2].startswith(("checkpoint-", "adapter/", "adapter.json"))
