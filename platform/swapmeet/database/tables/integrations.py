"""How far each job's metrics were sent to other systems."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from swapmeet.database.tables.base import Table, now


class SinkRow(Table):
    """One integration of one job, by its place in the job's list."""

    __tablename__ = "integration_sinks"

    job: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    sent: Mapped[int] = mapped_column(BigInteger, default=0)
    """Number of the last event that was sent."""
    failures: Mapped[int] = mapped_column(default=0)
    """Since something was sent last."""
    next_at: Mapped[datetime] = mapped_column(default=now)
    closed_at: Mapped[datetime | None] = mapped_column(index=True)
    """When all was sent, or given up."""
    claimed_by: Mapped[str | None] = mapped_column(String(64))
    claimed_until: Mapped[datetime | None]
