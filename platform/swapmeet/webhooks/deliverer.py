"""Sends what is to be told, again and again until it is taken or its time is over."""

import logging
import random
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta

from swapmeet.database import Database
from swapmeet.database.tables import WebhookRow
from swapmeet.database.tables.base import now
from swapmeet.errors import PlatformError, WebhookFailed, WebhookRefused
from swapmeet.secret_key import SecretKey
from swapmeet.webhooks.claims import Claim, Claims
from swapmeet.webhooks.sender import Sender, Target

log = logging.getLogger("swapmeet.webhooks")

POLL_SECONDS = 0.25
FORGET_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between attempts, in seconds: each about twice the last, from `first` up to `most`."""

    first: float = 5.0
    most: float = 3600.0

    def after(self, attempts: int) -> timedelta:
        """The pause after so many attempts, shortened by up to half so that many do not come back at once."""
        pause = min(self.most, self.first * 2.0 ** min(attempts - 1, 30))
        return timedelta(seconds=pause * random.uniform(0.5, 1))  # noqa: S311 - no secret


class Deliverer:
    """Delivers events to webhooks: at least once, in order for each, and none waits for another.

    Any number may run, in any processes, over one database. What one was sending that is killed is sent again by
    another, or by its successor, after `claim_seconds`, under the same `webhook-id`.

    Args:
        database: where webhooks and deliveries are.
        secret_key: what the webhooks' secrets are encrypted with.
        sender: how events are sent.
        workers: so many at once; retries take half of these places at most, and one tenant a quarter.
        backoff: when a failed delivery is tried again.
        claim_seconds: how long it may be silent before others take over what it was sending.
    """

    def __init__(
        self,
        database: Database,
        secret_key: SecretKey,
        sender: Sender | None = None,
        *,
        workers: int = 32,
        backoff: Backoff | None = None,
        claim_seconds: float = 6.0,
    ) -> None:
        self._secret_key = secret_key
        self._sender = sender or Sender()
        self._workers = workers
        self._backoff = backoff or Backoff()
        self._claims = Claims(database, claim_seconds)
        self._under_way: dict[Future[None], Claim] = {}
        self._forget_at = 0.0
        self._wake = threading.Event()

    def run_once(self) -> int:
        """Attempt all that is due, and what becomes due by that; gives how many attempts there were."""
        attempts = 0
        with ThreadPoolExecutor(self._workers, "webhooks") as pool:
            while True:
                self._renew()
                busy = bool(self._under_way)  # asked first: what ends while we look may make more due
                started = self._start(pool)
                attempts += started
                if not started and not busy:
                    return attempts
                self._pause()

    def serve(self, stop: threading.Event) -> None:
        """Deliver until told to stop, then wait for the attempts under way."""
        with ThreadPoolExecutor(self._workers, "webhooks") as pool:
            while self._under_way or not stop.is_set():
                try:
                    self._renew()
                    if not stop.is_set():
                        self._start(pool)
                        self._forget()
                except PlatformError as error:
                    log.warning("no webhooks are delivered at present: %s", error)
                    time.sleep(1)
                self._pause()

    def _renew(self) -> None:
        self._claims.renew(list(self._under_way.values()))

    def _pause(self) -> None:
        self._wake.wait(POLL_SECONDS)
        self._wake.clear()

    def _start(self, pool: ThreadPoolExecutor) -> int:
        """Begin as many attempts as there are places and due deliveries."""
        started = 0
        while len(self._under_way) < self._workers and (claim := self._claim()) is not None:
            future = pool.submit(self._attempt, claim)
            self._under_way[future] = claim
            future.add_done_callback(self._done)
            started += 1
        return started

    def _claim(self) -> Claim | None:
        """The next delivery, within what retries and one tenant may take: so neither holds up others."""
        claims = list(self._under_way.values())
        retries = sum(claim.delivery.attempts > 1 for claim in claims)
        tenants = Counter(claim.webhook.tenant for claim in claims)
        most = max(1, self._workers // 4)
        full = [tenant for tenant, count in tenants.items() if count >= most]
        return self._claims.take(first_only=retries >= max(1, self._workers // 2), without=full)

    def _done(self, future: "Future[None]") -> None:
        self._under_way.pop(future, None)
        self._wake.set()
        if error := future.exception():
            log.warning("a webhook's delivery could not be noted, and will be repeated: %s", error)

    def _forget(self) -> None:
        if time.monotonic() >= self._forget_at:
            self._claims.forget()
            self._forget_at = time.monotonic() + FORGET_SECONDS

    def _attempt(self, claim: Claim) -> None:
        delivery = claim.delivery
        try:
            self._sender.send(target_of(claim.webhook, self._secret_key), delivery.id, delivery.body)
        except (WebhookFailed, WebhookRefused) as error:
            self._failed(claim, str(error))
        except Exception as error:  # whatever it is, one webhook's trouble is not to end the others' deliveries
            log.exception("webhook %s could not be sent to", claim.webhook.id)
            self._failed(claim, str(error) if isinstance(error, PlatformError) else "could not be sent to")
        else:
            self._claims.settle(claim, None, None)

    def _failed(self, claim: Claim, error: str) -> None:
        delivery, at = claim.delivery, now()
        next_at: datetime | None = None
        if at < delivery.deadline:
            next_at = min(at + self._backoff.after(delivery.attempts), delivery.deadline)
        else:
            log.warning(
                "%s for webhook %s is given up after %d attempts; the last one %s",
                delivery.type, claim.webhook.id, delivery.attempts, error,
            )  # fmt: skip
        self._claims.settle(claim, error, next_at)


def target_of(row: WebhookRow, key: SecretKey) -> Target:
    """Where a webhook's events go, and the secrets that they are signed with: for a while after a change, two."""
    sealed = [row.secret]
    if row.old_secret is not None and row.old_secret_until is not None and row.old_secret_until > now():
        sealed.append(row.old_secret)
    credentials = key.open(row.credentials) if row.credentials is not None else ""
    return Target(row.url, credentials, tuple(key.open(each) for each in sealed))
