"""A tenant's webhooks: made, changed, tried out, and what was delivered to them."""

import base64
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from uuid import uuid4

import httpx
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.tables import DeliveryRow, TenantRow, WebhookRow
from swapmeet.database.tables.base import now
from swapmeet.errors import NotFound, WebhookFailed, WebhookRefused
from swapmeet.secret_key import SecretKey
from swapmeet.tenancy.audit import note
from swapmeet.tenancy.caller import Caller
from swapmeet.webhooks.addresses import resolve
from swapmeet.webhooks.deliverer import target_of
from swapmeet.webhooks.events import EVENTS, LASTS, announce, event_body
from swapmeet.webhooks.sender import SECRET_PREFIX, Sender, Target, checked_url

MOST_WEBHOOKS = 20
"""Of one tenant."""
OLD_SECRET_LASTS = timedelta(hours=24)
SAMPLE = "ftjob-sample"
"""The job that test deliveries are of."""


class Webhooks:
    """The webhooks of one database, each of one tenant; another tenant's does not exist.

    Args:
        database: where they are.
        secret_key: what their secrets are encrypted with.
        sender: how test deliveries are sent; its `private` also says which URLs may be given.
    """

    announce = staticmethod(announce)

    def __init__(self, database: Database, secret_key: SecretKey, sender: Sender | None = None) -> None:
        self._database = database
        self._key = secret_key
        self._sender = sender or Sender()

    def create(
        self, tenant: str, url: str, events: Sequence[str] = EVENTS, name: str = "", by: Caller | None = None
    ) -> tuple[WebhookRow, str]:
        """A new webhook and its secret, which is not shown again.

        Raises:
            WebhookRefused: the URL or an event can not be used, or the tenant has too many webhooks.
        """
        target = self._target(url)
        chosen, secret, webhook = _events(events), _new_secret(), f"whep_{uuid4().hex}"

        def insert(session: Session) -> WebhookRow:
            session.get(TenantRow, tenant, with_for_update=True)  # so that two at once can not exceed the limit
            if known := session.get(WebhookRow, webhook):
                return known
            count = select(func.count()).select_from(WebhookRow).where(WebhookRow.tenant == tenant)
            if (session.scalar(count) or 0) >= MOST_WEBHOOKS:
                raise WebhookRefused(f"You have {MOST_WEBHOOKS} webhooks, as many as one tenant may. Delete one first.")
            row = WebhookRow(id=webhook, tenant=tenant, name=name, url=target.url, events=chosen)
            row.credentials = self._sealed(target)
            row.secret, row.hint = self._key.seal(secret), secret[-4:]
            row.created_at = row.updated_at = now()
            session.add(row)
            note(session, by, "webhook.create", webhook, detail=" ".join(chosen))
            session.flush()
            return row

        return self._database.write(insert), secret

    def get(self, tenant: str, webhook: str) -> WebhookRow:
        """One webhook.

        Raises:
            NotFound: the tenant has none of that id.
        """
        return self._database.read(lambda session: _of(session, tenant, webhook))

    def page(self, tenant: str, after: str | None = None, limit: int = 20) -> tuple[list[WebhookRow], bool]:
        """Webhooks, newest first, from behind the one of the id `after`, and whether there are more."""

        def find(session: Session) -> list[WebhookRow]:
            newest_first = (WebhookRow.created_at.desc(), WebhookRow.id.desc())
            return list(session.scalars(select(WebhookRow).where(WebhookRow.tenant == tenant).order_by(*newest_first)))

        rows = self._database.read(find)  # at most MOST_WEBHOOKS
        ids = [row.id for row in rows]
        if after is not None and after not in ids:
            raise _no_webhook(after)
        start = ids.index(after) + 1 if after is not None else 0
        return rows[start : start + limit], len(rows) > start + limit

    def change(
        self,
        tenant: str,
        webhook: str,
        url: str | None = None,
        events: Sequence[str] | None = None,
        name: str | None = None,
        by: Caller | None = None,
    ) -> WebhookRow:
        """Change what is given; pending deliveries go to the new URL.

        Raises:
            NotFound: the tenant has none of that id.
            WebhookRefused: the URL or an event can not be used.
        """
        self.get(tenant, webhook)
        target = self._target(url) if url is not None else None
        chosen = _events(events) if events is not None else None

        def update(session: Session) -> WebhookRow:
            row = _of(session, tenant, webhook, lock=True)
            if target is not None:
                row.url, row.credentials = target.url, self._sealed(target)
            row.events = row.events if chosen is None else chosen
            row.name = row.name if name is None else name
            row.updated_at = now()
            given = {"url": url, "event_types": events, "name": name}
            changed = ", ".join(each for each, value in given.items() if value is not None)
            note(session, by, "webhook.change", webhook, detail=changed)
            return row

        return self._database.write(update)

    def delete(self, tenant: str, webhook: str, by: Caller | None = None) -> None:
        """Delete a webhook with all of its deliveries, the pending ones too.

        Raises:
            NotFound: the tenant has none of that id.
        """

        def remove(session: Session) -> None:
            session.delete(_of(session, tenant, webhook, lock=True))
            note(session, by, "webhook.delete", webhook)

        self._database.write(remove)

    def rotate(
        self, tenant: str, webhook: str, keep_old: bool = False, by: Caller | None = None
    ) -> tuple[WebhookRow, str]:
        """The webhook and its new secret, which is not shown again.

        Args:
            tenant: whose it is.
            webhook: its id.
            keep_old: sign with the present secret, too, for another 24 hours.
            by: who does it; None for the server itself.

        Raises:
            NotFound: the tenant has none of that id.
        """
        secret = _new_secret()

        def update(session: Session) -> WebhookRow:
            row = _of(session, tenant, webhook, lock=True)
            row.old_secret = row.secret if keep_old else None
            row.old_secret_until = now() + OLD_SECRET_LASTS if keep_old else None
            row.secret, row.hint, row.updated_at = self._key.seal(secret), secret[-4:], now()
            note(session, by, "webhook.rotate", webhook, detail="the old secret stays for a day" if keep_old else "")
            return row

        return self._database.write(update), secret

    def test(self, tenant: str, webhook: str, type: str) -> int:  # noqa: A002 - OpenAI's word
        """Send a sample event at once, beside all that is pending; gives the status that the URL answered with.

        Raises:
            WebhookFailed: it did not answer.
            NotFound: the tenant has no webhook of that id.
            WebhookRefused: there is no such event, or the URL's address is private.
        """
        (chosen,) = _events([type])
        target = target_of(self.get(tenant, webhook), self._key)
        sample = uuid4().hex
        try:
            return self._sender.status_of(target, f"wh_{sample}", event_body(f"evt_{sample}", chosen, SAMPLE, now()))
        except WebhookFailed as error:
            raise WebhookFailed(f"The webhook's URL {error}.") from None

    def deliveries(
        self, tenant: str, webhook: str, after: str | None = None, limit: int = 20
    ) -> tuple[list[DeliveryRow], bool]:
        """A webhook's deliveries, newest first, from behind the one of the id `after`, and whether there are more.

        Raises:
            NotFound: the tenant has no webhook of that id, or that no such delivery.
        """

        def find(session: Session) -> list[DeliveryRow]:
            _of(session, tenant, webhook)
            query = select(DeliveryRow).where(DeliveryRow.webhook == webhook)
            if after is not None:
                query = query.where(DeliveryRow.number < _delivery_of(session, webhook, after).number)
            return list(session.scalars(query.order_by(DeliveryRow.number.desc()).limit(limit + 1)))

        rows = self._database.read(find)
        return rows[:limit], len(rows) > limit

    def retry(self, tenant: str, webhook: str, delivery: str) -> DeliveryRow:
        """Have a delivery sent again, whatever became of it, under its old `webhook-id` and for another 24 hours.

        It keeps its place: what is still pending behind it waits for it.

        Raises:
            NotFound: the tenant has no webhook of that id, or that no such delivery.
        """

        def again(session: Session) -> DeliveryRow:
            _of(session, tenant, webhook, lock=True)
            row = _delivery_of(session, webhook, delivery)
            row.state, row.ended_at = "pending", None
            row.next_at, row.deadline = now(), now() + LASTS
            return row

        return self._database.write(again)

    def _sealed(self, target: Target) -> bytes | None:
        return self._key.seal(target.credentials) if target.credentials else None

    def _target(self, text: str) -> Target:
        """A usable URL; a name that has no address at present may get one."""
        target = checked_url(text)
        with suppress(socket.gaierror, UnicodeError):
            resolve(httpx.URL(target.url).raw_host.decode("ascii"), None, private=self._sender.private)
        return target


def _events(names: Sequence[str]) -> list[str]:
    unknown = [name for name in names if name not in EVENTS]
    if unknown or not names:
        told = ", ".join(map(repr, unknown[:5]))
        raise WebhookRefused(
            (f"There are no events {told}. " if unknown else "A webhook needs an event to be told of. ")
            + f"Choose from {', '.join(EVENTS)}."
        )
    return list(dict.fromkeys(names))


def _new_secret() -> str:
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def _of(session: Session, tenant: str, webhook: str, lock: bool = False) -> WebhookRow:
    row = session.get(WebhookRow, webhook, with_for_update=lock or None) if webhook.isprintable() else None
    if row is None or row.tenant != tenant:
        raise _no_webhook(webhook)
    return row


def _delivery_of(session: Session, webhook: str, delivery: str) -> DeliveryRow:
    query = select(DeliveryRow).where(DeliveryRow.id == delivery, DeliveryRow.webhook == webhook)
    row = session.scalar(query) if delivery.isprintable() else None
    if row is None:
        raise NotFound(f"The webhook has no delivery {delivery[:80]!r}. List its deliveries.")
    return row


def _no_webhook(webhook: str) -> NotFound:
    return NotFound(f"You have no webhook {webhook[:80]!r}. List your webhooks.")
