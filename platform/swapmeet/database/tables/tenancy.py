"""Who may do what, how much, what they used, and what was done."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from swapmeet.database.tables.base import Counter, Table, now


class TenantRow(Table):
    """A tenant: its share of the machines, and its limits, of which None is none.

    `gpu_seconds_a_day` is of the last 24 hours at any moment (`swapmeet.queue.shares`). `stored_bytes` counts files,
    pending uploads, what runs keep to go on from, and published adapters (`swapmeet.tenancy.quotas`).
    """

    __tablename__ = "tenants"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(default=now)
    weight: Mapped[float] = mapped_column(default=1.0)
    concurrent_runs: Mapped[int | None]
    gpu_seconds_a_day: Mapped[int | None] = mapped_column(BigInteger)
    stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    tokens_a_minute: Mapped[int | None] = mapped_column(BigInteger)
    requests_a_minute: Mapped[int | None] = mapped_column(BigInteger)
    stored_versions: Mapped[int | None] = mapped_column(BigInteger)
    suspended_at: Mapped[datetime | None]
    adapter_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """Of its published adapters, as they were counted last."""
    adapter_versions: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """Of its adapters that are not deleted, counted with them."""


class KeyRow(Table):
    """One key: its SHA-256, whose it is and what it may do. The key itself is never stored."""

    __tablename__ = "api_keys"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    id: Mapped[str] = mapped_column(String(40), unique=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"), index=True)
    name: Mapped[str] = mapped_column(String(200), default="")
    hint: Mapped[str] = mapped_column(String(8), default="")
    """The key's last four letters, by which its owner tells it from others."""
    scopes: Mapped[list[Any]]
    created_at: Mapped[datetime] = mapped_column(default=now)
    created_by: Mapped[str | None] = mapped_column(String(40))
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    replaced_by: Mapped[str | None] = mapped_column(String(40))
    """The key that it was rotated to."""


class UsageRow(Table):
    """So much of a kind, used by a tenant within a minute that begins `at`, once per source.

    Kinds: `inference_prompt_tokens`, `inference_output_tokens`, `inference_requests`, `training_tokens`,
    `gpu_seconds`, `cpu_seconds`, `stored_byte_hours`. `source` (a gateway's process, or a job and its attempt) makes
    telling the same twice harmless: amounts of one source, tenant, kind, subject and minute replace each other.
    """

    __tablename__ = "usage"
    __table_args__ = (
        UniqueConstraint("source", "at", "tenant", "kind", "subject", "key"),
        Index("ix_usage_tenant_at", "tenant", "at"),
        Index("ix_usage_owner_at", "owner", "at"),
    )

    id: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=True)
    at: Mapped[datetime]
    source: Mapped[str] = mapped_column(String(120))
    tenant: Mapped[str] = mapped_column(String(64))
    """Who pays: the caller, or whose job it is."""
    key: Mapped[str] = mapped_column(String(40), default="")
    kind: Mapped[str] = mapped_column(String(40))
    subject: Mapped[str] = mapped_column(String(200), default="")
    """The adapter, base or job that it was used on."""
    owner: Mapped[str] = mapped_column(String(64), default="")
    """Whose adapter it is, who may see how much it is used."""
    amount: Mapped[int] = mapped_column(BigInteger)


class SpendingRow(Table):
    """What a tenant's runs used lately of one kind, for whose turn it is and for the day's quota.

    `swapmeet.queue.spending.Spent` says what the columns mean.
    """

    __tablename__ = "spending"

    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(40), primary_key=True)
    at: Mapped[datetime]
    faded: Mapped[float]
    hours: Mapped[dict[str, Any]]


class AuditRow(Table):
    """Something that was done, or refused, and by whom. Never changed.

    `sequence` counts each tenant's entries from 1; `hash` is of all else in the entry, and of the one `previous` to it
    in the same log (`swapmeet.tenancy.audit_chain`). What is done elsewhere than in the database has two entries or
    more, of the same `operation`: that it begins, and how it ended.
    """

    __tablename__ = "audit"
    __table_args__ = (
        Index("ix_audit_tenant_id", "tenant", "id"),
        Index("ix_audit_tenant_sequence", "tenant", "sequence", unique=True),
    )

    id: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(default=now)
    tenant: Mapped[str] = mapped_column(String(64))
    """In whose log it stands: whose thing it was done to."""
    actor: Mapped[str] = mapped_column(String(64))
    """The tenant that did it: this one, or the operator's."""
    key: Mapped[str] = mapped_column(String(40), default="")
    action: Mapped[str] = mapped_column(String(60))
    subject: Mapped[str] = mapped_column(String(300), default="")
    outcome: Mapped[str] = mapped_column(String(60))
    request: Mapped[str] = mapped_column(String(80), default="")
    detail: Mapped[str] = mapped_column(Text, default="")
    operation: Mapped[str] = mapped_column(String(80), default="", server_default="")
    sequence: Mapped[int] = mapped_column(BigInteger, server_default="0")
    previous: Mapped[str] = mapped_column(String(64), server_default="")
    hash: Mapped[str] = mapped_column(String(64), server_default="")


class AuditChainRow(Table):
    """Where a tenant's log ends, and, as its anchor, the last of its entries that were forgotten."""

    __tablename__ = "audit_chains"

    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger, default=0)
    hash: Mapped[str] = mapped_column(String(64))
    anchor_sequence: Mapped[int] = mapped_column(BigInteger, default=0)
    anchor_hash: Mapped[str] = mapped_column(String(64))
