"""Fine-tuning jobs, what happened to them, and who leads the queue."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from swapmeet.database.tables.base import Counter, Table, now


class JobRow(Table):
    """A job. What its caller wanted never changes; `state`, `attempt` and what follows are the queue's.

    `state` is one of `swapmeet.jobs.states.State`. `wanted` is what the caller asked for last: `run`, `pause` or
    `cancel`. `attempt` counts starts: whoever writes as an attempt that is not the present one is refused.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_tenant_created_at_id", "tenant", "created_at", "id"),
        Index("ix_jobs_tenant_request_digest", "tenant", "request_digest"),
        Index("ix_jobs_tenant_kept_bytes", "tenant", "kept_bytes"),
        Index("ix_jobs_cleared_at_finished_at", "cleared_at", "finished_at"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    created_by: Mapped[str] = mapped_column(String(40))
    created_at: Mapped[datetime] = mapped_column(default=now)
    request_digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the canonical request: the client repeats one whose answer was lost."""
    model: Mapped[str] = mapped_column(String(300))
    """As asked for: a base, or an adapter to go on from."""
    base: Mapped[str] = mapped_column(String(200))
    adapter: Mapped[str] = mapped_column(String(130))
    """`TENANT/NAME` to publish as."""
    parent: Mapped[str | None] = mapped_column(String(220))
    """`TENANT/NAME@sha256:HEX` of the version that training goes on from."""
    training_file: Mapped[str] = mapped_column(String(64))
    validation_file: Mapped[str | None] = mapped_column(String(64))
    method: Mapped[str] = mapped_column(String(20))
    seed: Mapped[int] = mapped_column(BigInteger)
    hyperparameters: Mapped[dict[str, Any]]
    """In OpenAI's words, as they came back resolved."""
    lora: Mapped[dict[str, Any]]
    """Own options as asked for."""
    settings: Mapped[dict[str, Any]]
    """What the run is started with: everything of `FineTune` but names, paths and fingerprints."""
    resources: Mapped[dict[str, Any]]
    """CPUs, GPUs or a fraction of one, and bytes, by the plan."""
    plan: Mapped[dict[str, Any]]
    job_metadata: Mapped[dict[str, Any]] = mapped_column("metadata")
    integrations: Mapped[list[Any]]
    suffix: Mapped[str | None] = mapped_column(String(64))
    sweep: Mapped[str | None] = mapped_column(String(64), index=True)
    """The sweep that the job tries a configuration of: which adapter is published, is decided at the sweep's end."""
    priority: Mapped[int] = mapped_column(default=0)
    deadline: Mapped[datetime | None]

    state: Mapped[str] = mapped_column(String(20), index=True)
    wanted: Mapped[str] = mapped_column(String(10), default="run")
    attempt: Mapped[int] = mapped_column(default=0)
    failures: Mapped[int] = mapped_column(default=0)
    """Attempts that ended without the job's own fault, since its last checkpoint."""
    not_before: Mapped[datetime | None]
    """When a job that failed through no fault of its own is tried again."""
    queued_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    """Of the first attempt."""
    attempt_at: Mapped[datetime | None]
    """Of the present attempt."""
    finished_at: Mapped[datetime | None]
    estimated_finish: Mapped[datetime | None]
    waits_for: Mapped[str | None] = mapped_column(Text)
    """Why a waiting job waits, and about how long."""
    heard: Mapped[int] = mapped_column(default=0)
    """The number of the last thing that the present attempt told and that is recorded."""
    heard_at: Mapped[datetime | None]
    """When the present attempt last answered, to within a few seconds."""
    checkpoint: Mapped[str | None] = mapped_column(String(200))
    """The newest whole checkpoint that an attempt told of, as `swapmeet_training.attempts.run_storage` names it."""
    node: Mapped[str | None] = mapped_column(String(120))
    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int | None]
    trained_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    gpu_seconds: Mapped[float] = mapped_column(default=0.0)
    kept_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Of the checkpoints that are kept to go on from."""
    cleared_at: Mapped[datetime | None]
    """When what an ended job's attempts had left in the storage was removed."""
    fine_tuned_model: Mapped[str | None] = mapped_column(String(220))
    result_file: Mapped[str | None] = mapped_column(String(64))
    error: Mapped[dict[str, Any] | None]


class EventRow(Table):
    """Something that happened to a job. `name` makes telling it twice harmless: a job has each name once."""

    __tablename__ = "job_events"
    __table_args__ = (UniqueConstraint("job", "name"), Index("ix_job_events_job_number", "job", "number"))

    number: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    job: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(120))
    created_at: Mapped[datetime] = mapped_column(default=now)
    level: Mapped[str] = mapped_column(String(10), default="info")
    type: Mapped[str] = mapped_column(String(10), default="message")
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any] | None]


class CheckpointRow(Table):
    """A checkpoint that is a model: published under a name of its own."""

    __tablename__ = "job_checkpoints"
    __table_args__ = (UniqueConstraint("job", "step"),)

    number: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    job: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    step: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(default=now)
    model: Mapped[str] = mapped_column(String(220), index=True)
    digest: Mapped[str] = mapped_column(String(80))
    metrics: Mapped[dict[str, Any]]


class PermissionRow(Table):
    """Another tenant that may use a checkpoint."""

    __tablename__ = "checkpoint_permissions"
    __table_args__ = (UniqueConstraint("model", "project"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    model: Mapped[str] = mapped_column(String(220))
    project: Mapped[str] = mapped_column(String(64))
    """The tenant, which is what OpenAI's client calls a project."""
    created_at: Mapped[datetime] = mapped_column(default=now)


class LeaseRow(Table):
    """Who leads until when; `term` rises with every leader, so that an old one's writes can be told."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    holder: Mapped[str] = mapped_column(String(120))
    term: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[datetime]
