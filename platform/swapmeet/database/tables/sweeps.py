"""Sweeps: jobs of one submission, of which the best is kept."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from swapmeet.database.tables.base import Table, now


class SweepRow(Table):
    """A sweep. What its caller wanted never changes; `state` and what follows are the queue's.

    `state` is `running`, `succeeded`, `failed` or `cancelled`.
    """

    __tablename__ = "sweeps"
    __table_args__ = (
        Index("ix_sweeps_tenant_created_at_id", "tenant", "created_at", "id"),
        Index("ix_sweeps_tenant_request_digest", "tenant", "request_digest"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    created_by: Mapped[str] = mapped_column(String(40))
    created_at: Mapped[datetime] = mapped_column(default=now)
    request_digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the canonical request, as a job has it."""
    model: Mapped[str] = mapped_column(String(300))
    base: Mapped[str] = mapped_column(String(200))
    adapter: Mapped[str] = mapped_column(String(130))
    """`TENANT/NAME` to publish the best as."""
    training_file: Mapped[str] = mapped_column(String(64))
    validation_file: Mapped[str | None] = mapped_column(String(64))
    method: Mapped[str] = mapped_column(String(20))
    metric: Mapped[str] = mapped_column(String(20))
    """What the best is best by; one of `swapmeet.sweeps.request.METRICS`."""
    options: Mapped[dict[str, Any]]
    """What was asked to be tried."""
    combinations: Mapped[int] = mapped_column(BigInteger)
    """How many there are of what was asked; those that were not drawn have no job."""
    sweep_metadata: Mapped[dict[str, Any]] = mapped_column("metadata")

    state: Mapped[str] = mapped_column(String(20), index=True)
    finished_at: Mapped[datetime | None]
    best: Mapped[str | None] = mapped_column(String(64))
    """The job whose adapter was published."""
    fine_tuned_model: Mapped[str | None] = mapped_column(String(220))
    error: Mapped[dict[str, Any] | None]
    cleared_at: Mapped[datetime | None]
    """When what the others left in the storage had been removed."""


class SweepRunRow(Table):
    """One configuration of a sweep, and the job that tries it."""

    __tablename__ = "sweep_runs"

    sweep: Mapped[str] = mapped_column(ForeignKey("sweeps.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """From 1, in the order of what was asked."""
    job: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), unique=True)
    configuration: Mapped[dict[str, Any]]
    """The options that it was given, by name."""
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What its adapter measured, by the names of `swapmeet.sweeps.request.METRICS`."""
    adapter: Mapped[str | None] = mapped_column(String(200))
    """Where in the storage its adapter lies, once there is one that can be published."""
