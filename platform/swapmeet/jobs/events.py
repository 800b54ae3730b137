"""What happened to a job, each thing told once."""

import hashlib
from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from swapmeet.database.tables import EventRow, Table
from swapmeet.database.tables.base import now

TABLE = Table.metadata.tables[EventRow.__tablename__]
INSERTS = {
    "sqlite": sqlite.insert(TABLE).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(TABLE).on_conflict_do_nothing(),
}
"""Made once: that takes longer than to run them."""


def tell(
    session: Session,
    job: str,
    name: str,
    message: str,
    *,
    level: str = "info",
    type: str = "message",  # noqa: A002 - OpenAI's word
    data: dict[str, Any] | None = None,
) -> None:
    """Record an event in the caller's transaction, unless the job has one of this `name` already.

    Args:
        session: of the transaction that makes what is told true.
        job: the job's id.
        name: says which event it is, at most 120 characters, such as `checkpoint-20`.
        message: one sentence for the job's owner.
        level: `info`, `warn` or `error`.
        type: `message`, or `metrics` with the figures in `data`.
        data: what a program may want to read.
    """
    digest = hashlib.sha256(f"{job}/{name}".encode()).hexdigest()[:24]
    values = {"id": f"ftevent-{digest}", "job": job, "name": name, "created_at": now()}
    values |= {"level": level, "type": type, "message": message, "data": data}
    session.execute(INSERTS[session.get_bind().dialect.name], values)
