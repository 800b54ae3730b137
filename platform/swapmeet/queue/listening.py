"""What attempts tell, collected by the leader: recorded in order, published first where it is to be a model."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

from sqlalchemy.orm import Session

from swapmeet.database.tables import JobRow, SweepRow
from swapmeet.database.tables.base import now
from swapmeet.errors import DatabaseFailed, LeaseLost
from swapmeet.jobs.ending import Announce, spent
from swapmeet.jobs.events import tell
from swapmeet.jobs.publishing import Publisher
from swapmeet.jobs.states import State
from swapmeet.queue.chores import Chores
from swapmeet.queue.dispatcher import Dispatcher
from swapmeet.queue.leading import Leading
from swapmeet.queue.recording import Made, counts, record
from swapmeet_registry import RegistryError, StoreError
from swapmeet_training.attempts.telling import Answer, Finished, Saved, Telling

log = logging.getLogger("swapmeet.queue")

SILENCE = 120.0
"""Seconds after which an attempt that does not answer is given up."""
SEEN_EVERY = 15.0
"""Seconds between notes that an attempt that tells nothing still answers."""

Numbered = tuple[int, Telling]


@contextmanager
def apart(row: JobRow | SweepRow) -> Iterator[None]:
    """Do something for a job or a sweep; whatever goes wrong in it stops no other's."""
    try:
        yield
    except (LeaseLost, DatabaseFailed):
        raise
    except Exception:
        log.exception("the queue could not go on with %s and tries again", row.id)


class Listener:
    """Polls attempts. What is recorded is not asked for again, and what never was recorded is."""

    def __init__(
        self, leading: Leading, cluster: Dispatcher, chores: Chores, publisher: Publisher, announce: Announce
    ) -> None:
        self._lead, self._database = leading.write, leading.database
        self._cluster, self._chores = cluster, chores
        self._publisher, self._announce = publisher, announce
        self._answered: dict[tuple[str, int], float] = {}

    def listen(self, rows: Sequence[JobRow]) -> None:
        """Collect what the attempts of these jobs told since the last time."""
        answers = self._cluster.poll({row.id: row.heard for row in rows})
        present = {(row.id, row.attempt): self._answered.get((row.id, row.attempt), time.monotonic()) for row in rows}
        for row in rows:
            if (answer := answers.get(row.id)) is not None:
                present[row.id, row.attempt] = time.monotonic()
                with apart(row):
                    self._hear(row, answer)
        self._answered = present

    def end(self, job: str) -> None:
        """End what there is of a job's attempt; if the job ended unfinished, what it was publishing is deleted."""
        self._cluster.end(job)
        self._chores.begin(lambda: self._tidy(job))

    def _tidy(self, job: str) -> None:
        try:
            row = self._database.read(lambda session: session.get(JobRow, job))
            if row is not None and row.state in (State.CANCELLED, State.FAILED):
                self._chores.finish(f"{job}/")
                self._publisher.delete_unlisted(row)
        except (DatabaseFailed, RegistryError) as error:
            log.warning("what %s was publishing when it ended may not be deleted: %s", job, error)

    def silent(self, row: JobRow) -> bool:
        """Whether a job's attempt has not answered for too long."""
        return time.monotonic() - self._answered.get((row.id, row.attempt), time.monotonic()) > SILENCE

    def _hear(self, row: JobRow, answer: Answer) -> None:
        if answer.attempt < row.attempt:  # one that was given up, and not ended; of a later one, the row is out of date
            self.end(row.id)
        if answer.attempt != row.attempt:
            return
        new = [each for each in answer.told if each[0] > row.heard]
        for publish, group in groupby(new, lambda each: isinstance(each[1], Saved | Finished)):
            for part in [[each] for each in group] if publish else [list(group)]:
                if not self._take(row, part, publish):
                    return
        if not new and (now() - (row.heard_at or row.attempt_at or now())).total_seconds() > SEEN_EVERY:
            self._write(row, [], None)

    def _take(self, row: JobRow, part: list[Numbered], publish: bool) -> bool:
        """Record a part; False where what follows has to wait, or nobody wants it any more."""
        made: Made = None
        if publish:
            made = self._publish(row, *part[0])
            if made is None:
                return False
        return self._write(row, part, made)

    def _publish(self, row: JobRow, number: int, telling: Telling) -> Made:
        """What publishing made; None as long as it is under way."""
        try:
            return self._chores.result(f"{row.id}/{row.attempt}/{number}", lambda: self._make(row, telling))
        except StoreError as error:
            name, message = f"publish-{row.attempt}-{number}", f"Publishing waits for the registry: {error}"
            self._lead(lambda session: tell(session, row.id, name, message, level="warn"))
            return None
        except RegistryError as error:
            return error

    def _make(self, row: JobRow, telling: Telling) -> Made:
        if isinstance(telling, Saved):
            return self._publisher.checkpoint(row, telling)
        assert isinstance(telling, Finished)
        return self._publisher.result(row, telling)

    def _write(self, row: JobRow, part: list[Numbered], made: Made) -> bool:
        """Record what was told in one transaction; False where the attempt has ended by it, or before."""

        def work(session: Session) -> str:
            found = session.get_one(JobRow, row.id, with_for_update=True)
            for number, telling in part:
                if not counts(found, row.attempt):
                    break
                if number > found.heard:
                    record(session, found, telling, made, self._announce)
                    found.heard = number
            if counts(found, row.attempt):
                found.heard_at = now()
                found.gpu_seconds = float(spent(session, found, found.heard_at)["gpu_seconds"])
            return found.state if found.attempt == row.attempt else State.QUEUED

        state = self._lead(work)
        if state != State.RUNNING:
            self.end(row.id)
        if state == State.SUCCEEDED:
            self._chores.begin(lambda: self._publisher.forget(row))
        return bool(state == State.RUNNING)
