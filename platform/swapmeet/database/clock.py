"""The database's clock: one for all who share it, whatever their own machines' say."""

from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from swapmeet.database.tables.base import now


def present(session: Session) -> datetime:
    """The present moment, also within a transaction that had to wait.

    SQLite has no clock of its own: its file is on one machine, whose clock all its users share.
    """
    if session.get_bind().dialect.name != "postgresql":
        return now()
    moment = session.scalar(select(func.clock_timestamp()))
    assert isinstance(moment, datetime)
    return moment
