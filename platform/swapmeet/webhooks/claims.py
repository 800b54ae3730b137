"""Who delivers what: claims in SQL, one per webhook, so that nobody delivers beside another and order stays.

A claim is short, and renewed as long as its deliverer lives: one that is killed holds nothing up for longer than that.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import uuid4

from sqlalchemy import Select, and_, delete, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from swapmeet.database import Database
from swapmeet.database.clock import present
from swapmeet.database.tables import DeliveryRow, WebhookRow
from swapmeet.database.tables.base import now

KEPT = timedelta(days=30)
"""How long one can see what became of a delivery."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A webhook's oldest pending delivery, which is one deliverer's until it settles it or the claim runs out."""

    token: str
    webhook: WebhookRow
    delivery: DeliveryRow


class Claims:
    """The deliveries that are due, as one deliverer sees them.

    Args:
        database: where they are.
        lasts: how long a claim lasts that is not renewed, in seconds.
    """

    def __init__(self, database: Database, lasts: float) -> None:
        self._database = database
        self._lasts = timedelta(seconds=lasts)
        self._renew_at = 0.0

    def take(self, *, first_only: bool = False, without: Collection[str] = ()) -> Claim | None:
        """A delivery that is due and nobody's, or None; those tried least often come first.

        Args:
            first_only: only what was never tried.
            without: tenants that are left out.
        """
        if self._database.read(lambda session: session.scalar(_due(present(session), first_only, without))) is None:
            return None  # most looks find nothing, and need not wait for whoever writes
        token = uuid4().hex
        return self._database.write(lambda session: self._take(session, token, first_only, without))

    def renew(self, claims: Collection[Claim]) -> None:
        """Have claims last from now on, if it is time to; those that are another's by now stay so."""
        if not claims:
            self._renew_at = time.monotonic() + self._lasts.total_seconds() / 3
        elif time.monotonic() >= self._renew_at:
            tokens = [claim.token for claim in claims]

            def note(session: Session) -> None:
                own = update(WebhookRow).where(WebhookRow.claimed_by.in_(tokens))
                session.execute(own.values(claimed_until=present(session) + self._lasts))

            self._database.write(note)
            self._renew_at = time.monotonic() + self._lasts.total_seconds() / 3

    def forget(self) -> None:
        """Delete what ended long ago."""
        old = delete(DeliveryRow).where(DeliveryRow.ended_at < now() - KEPT)
        self._database.write(lambda session: session.execute(old))

    def settle(self, claim: Claim, error: str | None, next_at: datetime | None) -> None:
        """Note how an attempt ended, and let the webhook go.

        A claim that ran out and is another's by now changes nothing: the other's attempt counts.

        Args:
            claim: what was attempted.
            error: what it failed of, or None.
            next_at: when to try again after an error, or None to give up.
        """

        def note(session: Session) -> None:
            webhook = session.get(WebhookRow, claim.webhook.id, with_for_update=True)
            if webhook is None or webhook.claimed_by != claim.token:
                return
            webhook.claimed_by = webhook.claimed_until = None
            delivery = session.get_one(DeliveryRow, claim.delivery.number)
            delivery.error = error
            if error is None or next_at is None:
                delivery.state = "given_up" if error else "delivered"
                delivery.ended_at = now()
            else:
                delivery.next_at = next_at

        self._database.write(note)

    def _take(self, session: Session, token: str, first_only: bool, without: Collection[str]) -> Claim | None:
        at = present(session)
        found = session.scalar(_due(at, first_only, without).with_for_update(of=WebhookRow, skip_locked=True))
        if found is None:
            return None
        webhook = session.get_one(WebhookRow, found, populate_existing=True)
        # The search may have seen what was so before another deliverer let go; under the lock it can not change.
        delivery = session.scalar(_oldest(found))
        if delivery is None or delivery.next_at > at or (webhook.claimed_until and webhook.claimed_until > at):
            return None
        webhook.claimed_by, webhook.claimed_until = token, at + self._lasts
        delivery.attempts += 1  # counted at the start, so that one that kills its deliverer counts, too
        return Claim(token, webhook, delivery)


def _oldest(webhook: str) -> "Select[DeliveryRow]":
    pending = select(DeliveryRow).where(DeliveryRow.webhook == webhook, DeliveryRow.state == "pending")
    return pending.order_by(DeliveryRow.number).limit(1)


def _due(at: datetime, first_only: bool, without: Collection[str]) -> "Select[str]":
    """The webhook whose oldest pending delivery is most due, of those that nobody has claimed."""
    oldest = (
        select(func.min(DeliveryRow.number).label("number"))
        .where(DeliveryRow.state == "pending")
        .group_by(DeliveryRow.webhook)
        .subquery()
    )
    head = aliased(DeliveryRow)
    free = or_(WebhookRow.claimed_until.is_(None), WebhookRow.claimed_until <= at)
    query = (
        select(WebhookRow.id)
        .join(head, head.webhook == WebhookRow.id)
        .join(oldest, oldest.c.number == head.number)
        .where(and_(free, head.next_at <= at, WebhookRow.tenant.not_in(without)))
        .order_by(head.attempts, head.next_at)
        .limit(1)
    )
    return query.where(head.attempts == 0) if first_only else query
