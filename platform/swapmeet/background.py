"""What a server does besides answering: uploads, the queue of jobs, webhooks, metrics for others, what is old.

Any number of servers may do it over one database: one leads the queue, and the others share what is to be sent.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from os import getpid

from swapmeet.database import Database
from swapmeet.fine_tuning import settle
from swapmeet.gateway.tuning import Tuning, tended
from swapmeet.integrations import Relay
from swapmeet.queue.scheduler import Scheduler
from swapmeet.retention import Retention
from swapmeet.secret_key import load_secret_key
from swapmeet.settings import Settings
from swapmeet.webhooks import Deliverer, Sender, announce


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
