"""Sends jobs' metrics to other systems, in the background of a server."""

import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import uuid4

from swapmeet.database import Database
from swapmeet.database.tables import EventRow
from swapmeet.database.tables.base import now
from swapmeet.errors import PlatformError, SinkFailed
from swapmeet.integrations.progress import CLAIM, Batch, Key, Progress
from swapmeet.integrations.sink import Point, Run, Sink, open_sink
from swapmeet.settings import Settings

log = logging.getLogger("swapmeet.integrations")

POLL_SECONDS = 1.0
WORKERS = 8
FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=5), timedelta(minutes=5)
Open = Callable[[Any, Run, Settings], Sink]


class Relay:
    """Follows the metrics events of every job with integrations, and sends them on, each at least once.

    Any number may run over one database: a job's sink is one relay's as long as that goes on with it. A sink that
    fails is told of once in the job's events, tried again with growing pauses, and given up an hour after the job's
    end; nothing else comes of it.

    Args:
        database: where jobs and their events are.
        settings: the server's.
        interval: seconds between two looks at a job that runs, and for jobs that are new.
        opening: gives an integration's sink.
    """

    def __init__(
        self, database: Database, settings: Settings, *, interval: float = 5.0, opening: Open = open_sink
    ) -> None:
        self._progress = Progress(database, uuid4().hex)
        self._settings = settings
        self._interval = timedelta(seconds=interval)
        self._opening = opening
        self._open: dict[Key, Sink] = {}
        self._under_way: dict[Key, Future[None]] = {}
        self._attach_at = self._renew_at = 0.0

    def run_once(self) -> None:
        """Send all that is there to be sent, and let go of it."""
        with ThreadPoolExecutor(WORKERS, "integrations") as pool:
            self._start(pool)
        self._close_all()

    def serve(self, stop: threading.Event) -> None:
        """Send until told to stop; what is left is sent by whoever comes next."""
        with ThreadPoolExecutor(WORKERS, "integrations") as pool:
            while not stop.wait(POLL_SECONDS):
                try:
                    self._renew()
                    self._start(pool)
                except PlatformError as error:
                    log.warning("no metrics are sent at present: %s", error)
        self._close_all()

    def _start(self, pool: ThreadPoolExecutor) -> None:
        for key in [key for key, future in self._under_way.items() if future.done()]:
            del self._under_way[key]
        if time.monotonic() >= self._attach_at:
            self._progress.attach()
            self._attach_at = time.monotonic() + self._interval.total_seconds()
        for key in self._progress.due():
            if key not in self._under_way:
                self._under_way[key] = pool.submit(self._step, key)

    def _renew(self) -> None:
        if (self._open or self._under_way) and time.monotonic() >= self._renew_at:
            self._progress.renew()
            self._renew_at = time.monotonic() + CLAIM.total_seconds() / 3

    def _step(self, key: Key) -> None:
        """One batch of one sink. Whatever happens in it ends here."""
        try:
            batch = self._progress.claim(key, now() + self._interval)
            if batch is None:
                self._close(key)  # another relay's by now
            else:
                self._send(key, batch)
        except Exception as error:
            log.warning("metrics of %s are sent later: %s", key.job, error)

    def _send(self, key: Key, batch: Batch) -> None:
        try:
            sink = self._open.get(key)
            if sink is None:
                sink = self._open[key] = self._opening(batch.integration, batch.run, self._settings)
            if points := [point for event in batch.events if (point := _point(event))]:
                sink.log(points)
            if batch.last and batch.ended is not None:
                sink.end(*batch.ended)
        except Exception as error:
            self._close(key)
            self._failed(key, batch, str(error) if isinstance(error, SinkFailed) else type(error).__name__)
            return
        done = batch.last and batch.ended is not None
        if done or batch.events:
            self._progress.sent(key, batch, done)
        if done:
            self._close(key)

    def _failed(self, key: Key, batch: Batch, error: str) -> None:
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(batch.failures, 10))
        self._progress.failed(key, batch, error, now() + pause)

    def _close(self, key: Key) -> None:
        sink = self._open.pop(key, None)
        if sink is not None:
            with suppress(Exception):
                sink.close()

    def _close_all(self) -> None:
        for key in list(self._open):
            self._close(key)
        with suppress(PlatformError):
            self._progress.let_go()


def _point(event: EventRow) -> Point | None:
    """What a metrics event measured; None where that is nothing finite at any step."""
    data = event.data or {}
    step = data.get("step")
    values = {
        name: float(value)
        for name, value in data.items()
        if name not in ("step", "total_steps") and type(value) in (int, float) and math.isfinite(value)
    }
    return Point(step, event.created_at, values) if type(step) is int and values else None
