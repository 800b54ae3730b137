"""Whom to tell what happened, and what is still to be told."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from swapmeet.database.tables.base import Counter, Table, now


class WebhookRow(Table):
    """A URL that is told of a tenant's events. Its secrets are encrypted with the platform's own key."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"), index=True)
    name: Mapped[str] = mapped_column(String(100), default="")
    url: Mapped[str] = mapped_column(String(2000))
    """Without user and password."""
    credentials: Mapped[bytes | None] = mapped_column(LargeBinary)
    """The URL's `user:password`."""
    secret: Mapped[bytes] = mapped_column(LargeBinary)
    hint: Mapped[str] = mapped_column(String(8), default="")
    """The secret's last four letters, by which its owner tells it from others."""
    old_secret: Mapped[bytes | None] = mapped_column(LargeBinary)
    old_secret_until: Mapped[datetime | None]
    """Until then events are signed with the secret before, too."""
    events: Mapped[list[Any]]
    created_at: Mapped[datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime] = mapped_column(default=now)
    claimed_by: Mapped[str | None] = mapped_column(String(64))
    """Who is delivering to it: one at a time, so that order stays."""
    claimed_until: Mapped[datetime | None]


class DeliveryRow(Table):
    """One event for one URL, delivered at least once and in the order of `number`."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("ix_webhook_deliveries_webhook_number", "webhook", "number"),
        Index("ix_webhook_deliveries_state_webhook_number", "state", "webhook", "number"),
    )

    number: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    """Also its `webhook-id` header, by which a receiver knows a repetition."""
    webhook: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    type: Mapped[str] = mapped_column(String(60))
    body: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=now)
    state: Mapped[str] = mapped_column(String(12), default="pending")
    """`pending`, `delivered` or `given_up`."""
    attempts: Mapped[int] = mapped_column(default=0)
    next_at: Mapped[datetime] = mapped_column(default=now)
    deadline: Mapped[datetime]
    """When it is given up."""
    ended_at: Mapped[datetime | None]
    error: Mapped[str | None] = mapped_column(Text)
    """What the last attempt failed of, in one line."""
