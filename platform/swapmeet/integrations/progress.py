"""How far each sink has come, in SQL, and whose it is to go on."""

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Text, cast, exists, or_, select, update
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.tables import EventRow, JobRow, SinkRow
from swapmeet.database.tables.base import now
from swapmeet.integrations.sink import Run

MOST_EVENTS = 500
"""Of one batch."""
CLAIM = timedelta(seconds=30)
"""How long a relay may be silent before others take its sinks; it renews its claims as long as it lives."""
LATEST = timedelta(hours=1)
"""How long after its job's end a sink that fails is tried."""
ENDED = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Key:
    """One integration of one job, by its place in the job's list."""

    job: str
    place: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What a sink is to be sent next.

    Args:
        integration: as the job has it.
        run: the job, for other systems.
        events: metrics events, oldest first.
        last: whether there are no more at present.
        ended: the job's last state, and when it ended; None while it goes on.
        failures: of the sink, since something was sent last.
    """

    integration: Any
    run: Run
    events: tuple[EventRow, ...]
    last: bool
    ended: tuple[str, datetime] | None
    failures: int


class Progress:
    """The sinks of one database, as one relay sees them.

    Args:
        database: where they are.
        relay: says which relay has claimed a sink.
    """

    def __init__(self, database: Database, relay: str) -> None:
        self._database = database
        self._relay = relay

    def attach(self) -> None:
        """Begin to follow jobs with integrations that are not followed yet."""
        followed = exists().where(SinkRow.job == JobRow.id)
        new = select(JobRow.id).where(cast(JobRow.integrations, Text) != "[]", ~followed).limit(100)
        if not self._database.read(lambda session: session.scalars(new).all()):
            return

        def insert(session: Session) -> None:
            for job in session.scalars(select(JobRow).where(JobRow.id.in_(new)).with_for_update()).all():
                for place in range(len(job.integrations)):
                    if session.get(SinkRow, (job.id, place)) is None:
                        session.add(SinkRow(job=job.id, place=place))

        self._database.write(insert)

    def due(self) -> list[Key]:
        """Sinks that may be gone on with now."""
        query = select(SinkRow.job, SinkRow.place).where(self._free(now())).order_by(SinkRow.next_at).limit(100)
        return [Key(job, place) for job, place in self._database.read(lambda session: session.execute(query).all())]

    def claim(self, key: Key, next_at: datetime) -> Batch | None:
        """What a sink is to be sent, which is this relay's from now on; None where it is another's.

        Args:
            key: the sink.
            next_at: when to look again, unless something else is noted.
        """

        def take(session: Session) -> Batch | None:
            mine = select(SinkRow).where(_is(key), self._free(now())).with_for_update(skip_locked=True)
            row = session.scalar(mine)
            if row is None:
                return None
            row.claimed_by, row.claimed_until, row.next_at = self._relay, now() + CLAIM, next_at
            return _batch(session, row)

        return self._database.write(take)

    def sent(self, key: Key, batch: Batch, done: bool) -> None:
        """Note that a batch was sent, and whether it was the last of all; if it left something, that is due now."""
        last = max((event.number for event in batch.events), default=0)

        def note(session: Session) -> None:
            row = self._mine(session, key)
            if row is not None:
                row.sent, row.failures = max(row.sent, last), 0
                row.next_at = row.next_at if batch.last else now()
                row.closed_at = now() if done else None

        self._database.write(note)

    def failed(self, key: Key, batch: Batch, error: str, next_at: datetime) -> None:
        """Note that a batch could not be sent, and tell it in the job's events, the first time."""
        name = f"integration-{key.place}"
        digest = hashlib.sha256(f"{key.job}/{name}".encode()).hexdigest()[:24]

        def note(session: Session) -> None:
            row = self._mine(session, key)
            if row is None:
                return
            row.failures, row.next_at = row.failures + 1, next_at
            row.closed_at = now() if batch.ended is not None and now() > batch.ended[1] + LATEST else None
            told = select(EventRow.number).where(EventRow.job == key.job, EventRow.name == name)
            if session.scalar(told) is None:
                kind = batch.integration.get("type", "an integration")
                session.add(
                    EventRow(
                        id=f"ftevent-{digest}",
                        job=key.job,
                        name=name,
                        level="warn",
                        message=f"Metrics can not be sent to {kind}: {error}. The job goes on; they are sent when it"
                        " takes them again.",
                    )
                )

        self._database.write(note)

    def renew(self) -> None:
        """Have the claims of this relay's last from now on."""
        own = update(SinkRow).where(SinkRow.claimed_by == self._relay, SinkRow.closed_at.is_(None))
        self._database.write(lambda session: session.execute(own.values(claimed_until=now() + CLAIM)))

    def let_go(self) -> None:
        """Leave all sinks of this relay's to others."""
        free = update(SinkRow).where(SinkRow.claimed_by == self._relay).values(claimed_by=None, claimed_until=None)
        self._database.write(lambda session: session.execute(free))

    def _free(self, at: datetime) -> ColumnElement[bool]:
        """Open, due, and this relay's or nobody's."""
        claim = or_(SinkRow.claimed_until.is_(None), SinkRow.claimed_until <= at, SinkRow.claimed_by == self._relay)
        return SinkRow.closed_at.is_(None) & (SinkRow.next_at <= at) & claim

    def _mine(self, session: Session, key: Key) -> SinkRow | None:
        row = session.scalar(select(SinkRow).where(_is(key)).with_for_update())
        return row if row is not None and row.claimed_by == self._relay else None


def _is(key: Key) -> ColumnElement[bool]:
    return (SinkRow.job == key.job) & (SinkRow.place == key.place)


def _batch(session: Session, row: SinkRow) -> Batch:
    job = session.get_one(JobRow, row.job)  # before its events: what is told by its end is there
    query = select(EventRow).where(EventRow.job == row.job, EventRow.type == "metrics", EventRow.number > row.sent)
    events = session.scalars(query.order_by(EventRow.number).limit(MOST_EVENTS + 1)).all()
    return Batch(
        integration=job.integrations[row.place],
        run=Run(job.id, job.tenant, job.model, job.adapter, job.created_at),
        events=tuple(events[:MOST_EVENTS]),
        last=len(events) <= MOST_EVENTS,
        ended=(job.state, job.finished_at or now()) if job.state in ENDED else None,
        failures=row.failures,
    )
