"""What a server does besides answering: uploads, the queue of jobs, webhooks, metrics, what is found, what is old.

Any number of servers may do it over one database: one leads the queue, and the others share what is to be sent.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from os import getpid

from sqlalchemy import select

from swapmeet.database import Database
from swapmeet.database.tables import FileRow
from swapmeet.errors import DatabaseFailed
from swapmeet.fine_tuning import settle
from swapmeet.gateway.tuning import Tuning, tended
from swapmeet.integrations import Relay
from swapmeet.marketplace import Market
from swapmeet.queue.scheduler import Scheduler
from swapmeet.retention import Retention
from swapmeet.secret_key import load_secret_key
from swapmeet.settings import Settings
from swapmeet.webhooks import Deliverer, Sender, announce
from swapmeet_registry import Registry
from swapmeet_training.attempts.warm import keep_warm

LOOKS = 1.0
"""Seconds between two looks whether anybody fine-tunes here."""


@contextmanager
def at_work(settings: Settings, database: Database, tuning: Tuning) -> Iterator[None]:
    """Do all of it within the block, on threads of its own; Ray must run."""
    stop = threading.Event()
    holder = f"{socket.gethostname()}:{getpid()}"
    deliverer = Deliverer(database, load_secret_key(settings), Sender(private=settings.webhook_private))
    serves = {
        "queue": Scheduler(
            settings, database, announce=announce, settle=settle, plan=tuning.planner, holder=holder
        ).serve,
        "webhooks": deliverer.serve,
        "integrations": Relay(database, settings).serve,
        "warm": lambda stop: warm_up(settings, database, stop),
        "market": Market(database, Registry(settings.registry_url)).serve,
        "retention": Retention(settings, database).serve,
    }
    threads = [threading.Thread(target=serve, args=(stop,), name=name, daemon=True) for name, serve in serves.items()]
    for thread in threads:
        thread.start()
    try:
        with tended(tuning):
            yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def warm_up(settings: Settings, database: Database, stop: threading.Event) -> None:
    """Once there is a file to train on, keep a process from which plans and runs here are forked, until `stop`."""
    while not stop.is_set():
        try:
            if database.read(lambda session: session.scalar(select(FileRow.id).limit(1))):
                keep_warm(settings.folder, stop, "swapmeet.planning.answering")
        except DatabaseFailed:
            pass  # whoever needs it now will say so
        stop.wait(LOOKS)
