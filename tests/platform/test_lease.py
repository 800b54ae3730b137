"""One leader at a time, whatever happens to it, and no writes by one that was."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from typing import Any, Self

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.migrations import upgrade
from swapmeet.database.tables import AuditRow, LeaseRow
from swapmeet.database.tables.base import now
from swapmeet.errors import LeaseLost
from swapmeet.queue import lease as leases
from swapmeet.queue.lease import SCHEDULER, VALID, Lease, require
from swapmeet.tenancy import audit_chain

TAKEN_OVER = 10.0
"""Seconds within which another instance leads."""

INSTANCE = """
import json, sys
from swapmeet.database import Database
from swapmeet.database.tables import AuditRow
from swapmeet.errors import LeaseLost
from swapmeet.queue.lease import Lease, SCHEDULER, require
from swapmeet.database.tables.base import now
from swapmeet.tenancy import audit_chain

def say(**what):
    print(json.dumps(what), flush=True)

def write(term, pause):
    def work(session):
        require(session, term)
        if pause:
            say(inside=True)
            sys.stdin.readline()
        said = {"actor": "admin", "key": "", "action": f"term {term}", "subject": "", "outcome": "done"}
        row = AuditRow(at=now(), tenant="admin", **said)
        audit_chain.add(session, row)
    try:
        database.write(work)
        say(wrote=True)
    except LeaseLost:
        say(wrote=False)

database = Database(sys.argv[1])
with Lease(database, SCHEDULER, sys.argv[2]) as lease:
    term = lease.term
    for line in sys.stdin:
        command = line.strip()
        if command == "state":
            say(leads=lease.hold(), term=lease.term)
        elif command == "write":
            write(term, pause=False)
        elif command == "write slowly":
            write(term, pause=True)
        elif command == "remember":
            term = lease.term
            say(term=term)
"""


class Instance:
    """Another process that stands by for the lease, and does as it is told."""

    def __init__(self, url: str, name: str) -> None:
        command = [sys.executable, "-c", INSTANCE, url, name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(self, command: str) -> None:
        assert self.process.stdin
        print(command, file=self.process.stdin, flush=True)

    def ask(self, command: str) -> dict[str, Any]:
        self.tell(command)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    @property
    def leads(self) -> bool:
        return bool(self.ask("state")["leads"])

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.send(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()


def leader(*instances: Instance) -> Instance:
    """Whoever leads in the end; fails if nobody does in time, or two do at once."""
    began = time.monotonic()
    while time.monotonic() < began + TAKEN_OVER:
        found = [instance for instance in instances if instance.leads]
        assert len(found) < 2
        if found:
            return found[0]
        time.sleep(0.05)
    raise AssertionError("nobody took over")


def written(database: Database) -> list[str]:
    return database.read(lambda session: list(session.scalars(select(AuditRow.action).order_by(AuditRow.id))))


@pytest.mark.slow
def test_another_takes_over_from_a_leader_that_was_stopped_or_killed(database: Database) -> None:
    url = database.url
    with Instance(url, "one") as one, Instance(url, "two") as two, Instance(url, "three") as three:
        first = leader(one, two, three)
        others = [instance for instance in (one, two, three) if instance is not first]
        old = first.ask("remember")["term"]
        assert first.ask("write") == {"wrote": True}
        first.send(signal.SIGSTOP)
        second = leader(*others)
        new = second.ask("remember")["term"]
        first.send(signal.SIGCONT)
        assert first.ask("write") == {"wrote": False}
        assert not first.leads
        assert second.ask("write") == {"wrote": True}
        assert written(database) == [f"term {old}", f"term {new}"]
        assert new > old
        second.send(signal.SIGKILL)
        third = leader(*(instance for instance in (one, two, three) if instance is not second))
        assert third.ask("remember")["term"] > new
        assert third.ask("write") == {"wrote": True}


@pytest.mark.slow
def test_a_leader_stopped_within_a_transaction_holds_nobody_up(postgres_url: str) -> None:
    database = Database(postgres_url)
    upgrade(database)
    with Instance(postgres_url, "one") as one:
        assert one.leads
        one.ask("remember")
        assert one.ask("write slowly") == {"inside": True}
        one.send(signal.SIGSTOP)
        with Instance(postgres_url, "two") as two:
            assert leader(two) is two
            two.ask("remember")
            assert two.ask("write") == {"wrote": True}
            one.send(signal.SIGCONT)
            one.tell("")
            assert one.answer() == {"wrote": False}
    assert written(database) == ["term 2"]
    database.close()


def test_who_comes_second_waits_until_the_lease_is_given_back(database: Database) -> None:
    first, second = (Lease(database, SCHEDULER, "same name") for _ in range(2))
    assert first.hold()
    assert first.hold()
    assert not second.hold()
    assert (first.term, second.term) == (1, 0)
    first.release()
    assert not first.leads
    assert second.hold()
    assert second.term == 2
    assert not first.hold()


def test_leases_of_other_names_are_apart(database: Database) -> None:
    with Lease(database, "one", "a") as one, Lease(database, "two", "b") as two:
        assert one.hold()
        assert two.hold()


def test_only_one_of_many_that_begin_at_once_leads(database: Database) -> None:
    standing_by = [Lease(Database(database.url), SCHEDULER, f"{number}") for number in range(8)]
    threads = [threading.Thread(target=lease.hold) for lease in standing_by]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(lease.leads for lease in standing_by) == 1
    for lease in standing_by:
        lease._database.close()


def _write(session: Session, term: int) -> None:
    row = AuditRow(at=now(), tenant="admin", actor="admin", key="", action="written", subject="", outcome="done")
    audit_chain.add(session, row)
    require(session, term)


def test_only_the_present_term_may_write(database: Database) -> None:
    with pytest.raises(LeaseLost):
        database.write(lambda session: _write(session, 0))
    with Lease(database, SCHEDULER, "one") as lease:
        database.write(lambda session: _write(session, lease.term))
        for term in (lease.term - 1, lease.term + 1):
            with pytest.raises(LeaseLost, match="stand by"):
                database.write(lambda session, term=term: _write(session, term))  # type: ignore[misc]
    assert database.read(lambda session: session.scalar(select(func.count()).select_from(AuditRow))) == 1


class Clock:
    """A clock to set, in the place of the one that nobody sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 100.0
        monkeypatch.setattr(leases, "_elapsed", lambda: self.seconds)


def test_a_leader_without_a_database_stops_when_its_lease_has_run_out(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(monkeypatch)
    lease = Lease(database, SCHEDULER, "one")
    assert lease.hold()
    lease._database = Database("sqlite:////nowhere/at/all.db")
    clock.seconds += VALID - 1
    assert lease.hold()
    clock.seconds += 1
    assert not lease.leads
    assert not lease.hold()
    assert "could not be renewed" in caplog.text


def test_who_took_it_anew_after_a_gap_has_a_new_term(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    lease = Lease(database, SCHEDULER, "one")
    assert lease.hold()
    clock.seconds += VALID

    def run_out(session: Session) -> None:
        session.get_one(LeaseRow, SCHEDULER, with_for_update=True).expires_at = now() - timedelta(seconds=1)

    database.write(run_out)
    assert lease.hold()
    assert lease.term == 2


def test_a_clock_that_was_set_back_does_not_keep_a_dead_leader_s_lease(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)

    def add(session: Session) -> None:
        session.add(LeaseRow(name=SCHEDULER, holder="dead", term=7, expires_at=now() + timedelta(hours=3)))

    database.write(add)
    lease = Lease(database, SCHEDULER, "two")
    assert not lease.hold()
    clock.seconds += VALID - 1
    assert not lease.hold()
    clock.seconds += 1
    assert lease.hold()
    assert lease.term == 8
