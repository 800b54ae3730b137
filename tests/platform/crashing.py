"""Gateways and clients in processes of their own, to be killed (SIGKILL) at any step of what they do.

A step is one of the registry's (`swapmeet_registry.fault`), which writes to the storage take as well, a write to the
database before and after it, or a client's request before and after it. Processes are forked from one that has
imported everything, so that each starts in a fraction of a second.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx

from swapmeet.client import Client
from swapmeet.database import Database
from swapmeet.gateway.assembly import assemble
from swapmeet.gateway.listener import event_loop, listening
from swapmeet.jobs import Jobs
from swapmeet.jobs.publishing import Publisher
from swapmeet.settings import Settings
from swapmeet_registry import Fingerprint, fault
from swapmeet_training.attempts.run_storage import step_of
from swapmeet_training.attempts.telling import Saved

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["pytest", "swapmeet.client", "swapmeet.gateway.assembly", "boto3", "psycopg"])


class Steps:
    """Notes the steps, of some kinds, from when it is told to count, and kills this process at one of them."""

    def __init__(self, kill_at: int = 0, kinds: tuple[str, ...] = ("",)) -> None:
        self._kinds = kinds
        self.begin(kill_at)
        fault.hook = self.reached
        self._around(Database, "write", "database")
        self._around(httpx.Client, "send", "request")

    def begin(self, kill_at: int) -> None:
        """Count from here on, to the step to be killed at; 0 is none."""
        self.kill_at, self.seen = kill_at, list[str]()

    def reached(self, step: str) -> None:
        if not step.startswith(self._kinds):
            return
        self.seen.append(step)
        if len(self.seen) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def _around(self, owner: Any, method: str, what: str) -> None:
        original = getattr(owner, method)

        def noted(*arguments: Any, **more: Any) -> Any:
            self.reached(f"{what}.before")
            found = original(*arguments, **more)
            self.reached(f"{what}.done")
            return found

        setattr(owner, method, noted)


@dataclass
class Gateway:
    """A gateway without engines, which is started and killed as often as one likes; always at the same address."""

    settings: Settings
    base: Fingerprint
    environment: dict[str, str]
    _process: Any = field(default=None, init=False)
    _control: Any = field(default=None, init=False)

    def start(self) -> None:
        """Return when it answers."""
        self._control, theirs = FORKING.Pipe()
        told = self.settings, self.base, self.environment, theirs
        self._process = FORKING.Process(target=_serve, args=told, daemon=True)
        self._process.start()
        theirs.close()
        self._control.recv()

    def arm(self, kill_at: int) -> None:
        """Have it killed at a step, counted from here on."""
        self._control.send(kill_at)
        self._control.recv()

    def steps(self) -> list[str]:
        """What it reached since it was armed; it is not armed any more."""
        self._control.send(0)
        found: list[str] = self._control.recv()
        return found

    def wait_killed(self) -> bool:
        """Whether it is dead, or dies within seconds."""
        self._process.join(10)
        return bool(self._process.exitcode == -signal.SIGKILL)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._control.close()


def push(url: str, key: str, folder: Path, name: str, run: str, kill_at: int) -> int:
    """Push in a process that is killed at its step; gives its exit code."""
    return _apart(_push, url, key, folder, name, run, kill_at)


def publish_and_withdraw(settings: Settings, database: str, job: str, saved: Saved, kill_at: int) -> int:
    """Make a job's checkpoint a model, and withdraw it, in a process that is killed at its step; its exit code."""
    return _apart(_publish_and_withdraw, settings, database, job, saved, kill_at)


def _apart(target: Callable[..., None], *arguments: Any) -> int:
    process = FORKING.Process(target=target, args=arguments, daemon=True)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return int(process.exitcode)


def _serve(settings: Settings, base: Fingerprint, environment: dict[str, str], control: "Connection[Any, Any]") -> None:
    os.environ |= environment
    steps, replicas = Steps(), None
    app = assemble(settings, base, replicas)  # type: ignore[arg-type]
    with event_loop() as loop, listening(app, loop, settings.host, settings.port, drain=0):
        control.send([])
        while True:
            try:
                kill_at = control.recv()
            except EOFError:
                return
            seen = steps.seen
            steps.begin(kill_at)
            control.send(seen)


def _publish_and_withdraw(settings: Settings, url: str, job: str, saved: Saved, kill_at: int) -> None:
    database = Database(url)
    publisher, row = Publisher(settings, database), Jobs(database).get(None, job)
    Steps(kill_at, ("push.before_head", "push.head", "database."))
    publisher.checkpoint(row, saved)
    publisher.delete(row, step_of(saved.checkpoint), "It was worse.")


def _push(url: str, key: str, folder: Path, name: str, run: str, kill_at: int) -> None:
    Steps(kill_at)
    with Client(url, key) as client:
        client.adapters().push(folder, name, base="tiny", alias="prod", run=run)
