"""What is told: events in OpenAI's form, and the transaction's part of telling them."""

import hashlib
import json
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from swapmeet.database.tables import DeliveryRow, WebhookRow
from swapmeet.database.tables.base import now

ENDS = ("succeeded", "failed", "cancelled")
EVENTS = tuple(f"fine_tuning.{what}.{end}" for what in ("job", "sweep") for end in ENDS)

LASTS = timedelta(hours=24)
"""How long an event is delivered again before it is given up."""


def announce(session: Session, tenant: str, type: str, data_id: str) -> None:  # noqa: A002 - OpenAI's word
    """Have all of a tenant's webhooks for this type told, as a part of the caller's transaction.

    Harmless to repeat: an event of one type for one thing is told once. The webhooks' rows stay locked until the
    transaction ends, so that the order of its deliveries is the order of commits.

    Args:
        session: the caller's, in a transaction that writes.
        tenant: whose webhooks.
        type: one of `EVENTS`.
        data_id: the id of the job or sweep.
    """
    assert type in EVENTS, type
    rows = select(WebhookRow).where(WebhookRow.tenant == tenant).order_by(WebhookRow.id).with_for_update()
    for row in session.scalars(rows).all():
        delivery = "wh_" + _hash(row.id, type, data_id)
        known = session.scalar(select(DeliveryRow.id).where(DeliveryRow.id == delivery))
        if type in row.events and known is None:
            at = now()
            event = event_body("evt_" + _hash(tenant, type, data_id), type, data_id, at)
            session.add(
                DeliveryRow(
                    id=delivery, webhook=row.id, type=type, body=event, created_at=at, next_at=at, deadline=at + LASTS
                )
            )
    session.flush()  # numbers are given in the order of announcements, not of webhooks


def event_body(event_id: str, type: str, data_id: str, at: datetime) -> str:  # noqa: A002
    """An event as JSON, in OpenAI's form."""
    event = {
        "id": event_id,
        "object": "event",
        "created_at": int(at.timestamp()),
        "type": type,
        "data": {"id": data_id},
    }
    return json.dumps(event)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]
