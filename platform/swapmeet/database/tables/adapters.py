"""What the platform keeps of the registry: readers, changes, publishes under way. The heads are the truth."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from swapmeet.database.tables.base import Table, now

EVERYBODY = ""
"""The reader of what is public."""


class ReaderRow(Table):
    """An adapter that a tenant, or everybody, may read beside its owner, as its head had it `at` that moment.

    Only what is shared has rows, so that a private name and none at all are looked up alike. A row opens nothing: its
    head is asked again. Counting the registry (`swapmeet.tenancy.stocktaking`) makes all of them anew.
    """

    __tablename__ = "adapter_readers"
    __table_args__ = (Index("ix_adapter_readers_reader_name", "reader", "name"),)

    name: Mapped[str] = mapped_column(String(130), primary_key=True)
    reader: Mapped[str] = mapped_column(String(64), primary_key=True)
    at: Mapped[datetime] = mapped_column(default=now)


class ChangeRow(Table):
    """A version that was published or deleted lately, and is in its tenant's count, or out of it, since then.

    Whoever writes a row changes the count, or has just counted: so each version comes in once, and goes once. Counting
    the registry forgets rows that are old (`swapmeet.tenancy.stocktaking`).
    """

    __tablename__ = "adapter_changes"

    name: Mapped[str] = mapped_column(String(130), primary_key=True)
    digest: Mapped[str] = mapped_column(String(80), primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    deleted: Mapped[bool]
    at: Mapped[datetime] = mapped_column(default=now)


class PublishRow(Table):
    """An adapter on its way into the registry, file by file: what its publisher said of it, and what it became.

    `bytes` count as stored from the beginning, and it as a version, until it is published, cancelled or expired.
    """

    __tablename__ = "adapter_publishes"
    __table_args__ = (Index("ix_adapter_publishes_tenant_status", "tenant", "status"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    adapter: Mapped[str] = mapped_column(String(130))
    request: Mapped[dict[str, Any]]
    bytes: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(String(20), default="pending")
    """`pending`, `published`, `cancelled` or `expired`."""
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime]
    version: Mapped[int | None]
    digest: Mapped[str | None] = mapped_column(String(80))
