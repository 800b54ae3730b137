"""Events reach webhooks signed, in order and at least once, whatever servers and deliverers do."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest
from cryptography.fernet import Fernet
from sqlalchemy import select, update

from swapmeet.database import Database
from swapmeet.database.migrations import upgrade
from swapmeet.database.tables import DeliveryRow, TenantRow, WebhookRow
from swapmeet.database.tables.base import now
from swapmeet.secret_key import SecretKey
from swapmeet.webhooks import Backoff, Deliverer, Sender, Webhooks, announce

KEY = Fernet.generate_key().decode()
SUCCEEDED = "fine_tuning.job.succeeded"
CLIENT = openai.OpenAI(api_key="none", base_url="http://127.0.0.1:9")


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: str

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


Behaviour = Callable[["Handler"], None]


@dataclass
class Receiver:
    """What came, in order, and how each path answers; by default with 200."""

    url: str = ""
    received: list[Received] = field(default_factory=list)
    behaviours: defaultdict[str, Behaviour] = field(default_factory=lambda: defaultdict(lambda: answer(200)))
    release: threading.Event = field(default_factory=threading.Event)
    """Ends what hangs."""

    def at(self, path: str) -> list[Received]:
        return [each for each in self.received if each.path == path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    receiver: Receiver

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        body = self.rfile.read(length)
        if len(body) < length:  # whoever asked has left before all of it was sent
            self.close_connection = True
            return
        self.receiver.received.append(
            Received(self.path, {k.lower(): v for k, v in self.headers.items()}, body.decode())
        )
        self.close_connection = True
        with suppress(OSError):  # whoever asked has left
            self.receiver.behaviours[self.path](self)

    def log_message(self, *_: Any) -> None:
        pass


def answer(status: int, body: str = "", **headers: str) -> Behaviour:
    def behave(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("content-length", str(len(body.encode())))
        handler.end_headers()
        handler.wfile.write(body.encode())

    return behave


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """The first for the first request and so on; the last from then on."""
    left = list(behaviours)
    lock = threading.Lock()

    def behave(handler: Handler) -> None:
        with lock:
            chosen = left.pop(0) if len(left) > 1 else left[0]
        chosen(handler)

    return behave


def hang(handler: Handler) -> None:
    handler.receiver.release.wait(60)


def drip_headers(handler: Handler) -> None:
    """A byte of a header now and then: never silent for long, and never done."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
    while not handler.receiver.release.wait(0.05):
        handler.wfile.write(b"x")
        handler.wfile.flush()


def endless(status: int) -> Behaviour:
    """A body that never ends."""

    def behave(handler: Handler) -> None:
        handler.send_response(status)
        handler.end_headers()
        while not handler.receiver.release.is_set():
            handler.wfile.write(b"more and more " * 1000)

    return behave


def nonsense(handler: Handler) -> None:
    handler.wfile.write(b"\x00\x01 this is no HTTP\r\n\r\n")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()

    class Own(Handler):
        pass

    Own.receiver = receiver
    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    server.daemon_threads = True
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.release.set()
        server.shutdown()
        thread.join()
        server.server_close()


SENDER = Sender(private=True)
HASTY = Sender(private=True, step_seconds=0.4, seconds=0.8)
"""Also leaves good receivers, where the machine is busy: only for those that hang."""


@pytest.fixture
def webhooks(database: Database) -> Webhooks:
    return webhooks_in(database)


def webhooks_in(database: Database) -> Webhooks:
    database.write(lambda session: session.add_all([TenantRow(name="acme"), TenantRow(name="beta")]))
    return Webhooks(database, SecretKey(KEY), SENDER)


@pytest.fixture
def deliverer(database: Database, webhooks: Webhooks) -> Deliverer:
    return Deliverer(database, SecretKey(KEY), SENDER, backoff=Backoff(first=0.02, most=0.02))


def tell(database: Database, *jobs: str, tenant: str = "acme", event: str = SUCCEEDED) -> None:
    for job in jobs:
        database.write(lambda session, job=job: announce(session, tenant, event, job))


def rows(database: Database) -> list[DeliveryRow]:
    return database.read(lambda session: list(session.scalars(select(DeliveryRow).order_by(DeliveryRow.number))))


def settled(database: Database, deliverer: Deliverer, seconds: float = 20) -> list[DeliveryRow]:
    """Deliver until nothing is pending."""
    until = time.monotonic() + seconds
    while any(row.state == "pending" for row in rows(database)):
        assert time.monotonic() < until, rows(database)[0].error
        deliverer.run_once()
        time.sleep(0.01)
    return rows(database)


def jobs_of(received: list[Received]) -> list[str]:
    return [json.loads(each.body)["data"]["id"] for each in received]


def test_an_event_is_what_the_client_verifies(
    database: Database, webhooks: Webhooks, deliverer: Deliverer, receiver: Receiver
) -> None:
    _, secret = webhooks.create("acme", f"{receiver.url}/hook?token=t%2F1")
    assert secret.startswith("whsec_")
    tell(database, "ftjob-1")
    assert deliverer.run_once() == 1
    (got,) = receiver.received
    assert got.path == "/hook?token=t%2F1"
    assert got.headers["content-type"] == "application/json"
    event: Any = CLIENT.webhooks.unwrap(got.body, got.headers, secret=secret)
    assert (type(event).__name__, event.type, event.object) == (
        "FineTuningJobSucceededWebhookEvent", SUCCEEDED, "event",
    )  # fmt: skip
    assert event.data.id == "ftjob-1"
    assert event.id.startswith("evt_")
    assert abs(event.created_at - time.time()) < 60
    with pytest.raises(openai.InvalidWebhookSignatureError):
        CLIENT.webhooks.unwrap(got.body.replace("ftjob-1", "ftjob-2"), got.headers, secret=secret)
    (row,) = rows(database)
    assert (row.state, row.attempts, row.error, row.id) == ("delivered", 1, None, got.id)
    assert deliverer.run_once() == 0


def test_an_event_told_twice_is_one_and_only_its_own_tenant_and_type_get_it(
    database: Database, webhooks: Webhooks, deliverer: Deliverer, receiver: Receiver
) -> None:
    webhooks.create("acme", f"{receiver.url}/all")
    webhooks.create("acme", f"{receiver.url}/failures", ["fine_tuning.job.failed"])
    webhooks.create("beta", f"{receiver.url}/beta")
    tell(database, "ftjob-1", "ftjob-1")
    tell(database, "ftjob-2", event="fine_tuning.job.failed")
    deliverer.run_once()
    assert jobs_of(receiver.at("/all")) == ["ftjob-1", "ftjob-2"]
    assert jobs_of(receiver.at("/failures")) == ["ftjob-2"]
    assert receiver.at("/beta") == []
    ids = [each.id for each in receiver.received]
    assert len(set(ids)) == 3, "each endpoint's delivery has an id of its own"
    events = {json.loads(each.body)["id"] for each in receiver.received}
    assert len(events) == 2, "one event has one id, whoever is told of it"


def test_nothing_is_told_of_what_did_not_take_place(
    database: Database, webhooks: Webhooks, deliverer: Deliverer, receiver: Receiver
) -> None:
    webhooks.create("acme", receiver.url)

    def fail(session: Any) -> None:
        announce(session, "acme", SUCCEEDED, "ftjob-1")
        raise KeyError("own")

    with pytest.raises(KeyError):
        database.write(fail)
    assert deliverer.run_once() == 0


REFUSALS: dict[str, tuple[Behaviour, str]] = {
    "an error": (answer(500, "database down\nmore"), "answered 500: database down"),
    "an error with letters that are none": (answer(418, "tea\x1b[31mpot\0"), "answered 418: tea [31mpot "),
    "not found": (answer(404), "answered 404"),
    "a redirect": (answer(302, location="/elsewhere"), "answered 302: redirects are not followed"),
    "silence": (hang, "did not answer in time"),
    "headers without end": (drip_headers, "did not answer in time"),
    "an endless error": (endless(500), "answered 500: more and more more"),
    "no HTTP": (nonsense, "broke off without an answer in HTTP"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_tried_again_and_said(case: str, tmp_path_factory: Any, receiver: Receiver) -> None:
    behaviour, words = REFUSALS[case]
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('refusal')}/swapmeet.db")
    upgrade(database)
    webhooks = webhooks_in(database)
    sender = HASTY if behaviour in (hang, drip_headers) else SENDER
    hasty = Deliverer(database, SecretKey(KEY), sender, backoff=Backoff(first=60))
    receiver.behaviours["/hook"] = in_turn(behaviour, answer(204))
    webhooks.create("acme", f"{receiver.url}/hook")
    tell(database, "ftjob-1")
    started = time.monotonic()
    assert hasty.run_once() == 1
    assert time.monotonic() - started < 5
    (row,) = rows(database)
    assert row.state == "pending"
    assert words in str(row.error)
    assert "\n" not in str(row.error)
    assert len(str(row.error)) < 300
    assert timedelta(seconds=20) < row.next_at - now() < timedelta(seconds=60), "a pause, shortened by half at most"
    database.write(lambda session: setattr(session.get_one(DeliveryRow, row.number), "next_at", now()))
    (row,) = settled(database, Deliverer(database, SecretKey(KEY), SENDER))
    assert (row.state, row.attempts, row.error) == ("delivered", 2, None)
    assert receiver.at("/elsewhere") == []
    first, second = receiver.received
    assert first.id == second.id
    assert first.body == second.body
    database.close()


def test_an_endless_answer_that_is_good_is_good(
    database: Database, webhooks: Webhooks, deliverer: Deliverer, receiver: Receiver
) -> None:
    receiver.behaviours["/hook"] = endless(200)
    webhooks.create("acme", f"{receiver.url}/hook")
    tell(database, "ftjob-1")
    assert deliverer.run_once() == 1
    assert rows(database)[0].state == "delivered"


def test_a_later_event_waits_for_an_earlier_one(
    database: Database, webhooks: Webhooks, deliverer: Deliverer, receiver: Receiver
) -> None:
    receiver.behaviours["/hook"] = in_turn(answer(500), answer(503), answer(200), answer(500), answer(200))
    webhooks.create("acme", f"{receiver.url}/hook")
    jobs = [f"ftjob-{number}" for number in range(6)]
    tell(database, *jobs)
    done = settled(database, deliverer)
    assert [row.state for row in done] == ["delivered"] * 6
    assert jobs_of(receiver.received) == [jobs[0]] * 3 + [jobs[1]] * 2 + jobs[2:]


def test_what_is_never_taken_is_given_up_and_said_so(
    database: Database, webhooks: Webhooks, deliverer: Deliverer, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.behaviours["/hook?token=hush"] = in_turn(answer(500), answer(500), answer(200))
    hook, _ = webhooks.create("acme", f"{receiver.url}/hook?token=hush".replace("//", "//ana:hunter2@"))
    tell(database, "ftjob-1", "ftjob-2")
    patient = Deliverer(database, SecretKey(KEY), SENDER, backoff=Backoff(first=3600))
    patient.run_once()
    first = rows(database)[0]
    assert (first.state, first.attempts) == ("pending", 1)
    assert first.deadline - first.created_at == timedelta(hours=24)
    values = {"deadline": now(), "next_at": now()}
    database.write(
        lambda session: session.execute(update(DeliveryRow).values(values).where(DeliveryRow.id == first.id))
    )
    given_up, delivered = settled(database, deliverer)
    assert (given_up.state, delivered.state) == ("given_up", "delivered")
    assert given_up.error == "answered 500"
    assert given_up.ended_at is not None
    assert f"for webhook {hook.id} is given up" in caplog.text
    assert "hush" not in caplog.text
    assert "hunter2" not in caplog.text
    receiver.behaviours["/hook?token=hush"] = answer(200)
    again = webhooks.retry("acme", hook.id, given_up.id)
    assert (again.state, again.ended_at) == ("pending", None)
    assert [row.state for row in settled(database, deliverer)] == ["delivered", "delivered"]
    assert receiver.received[-1].id == given_up.id
    assert receiver.received[-1].headers["authorization"] == "Basic YW5hOmh1bnRlcjI="


@pytest.mark.parametrize(("attempts", "most"), [(1, 4), (0, 2)], ids=["retries", "one tenant"])
def test_webhooks_that_hang_hold_up_no_other(
    attempts: int, most: int, database: Database, webhooks: Webhooks, receiver: Receiver
) -> None:
    """Of eight places, four at most are for what failed before, and two for any one tenant."""
    tenants = [f"dead{number}" for number in range(4 if attempts else 1)]
    database.write(lambda session: session.add_all([TenantRow(name=name) for name in tenants]))
    for number in range(8):
        receiver.behaviours[f"/dead{number}"] = hang
        webhooks.create(tenants[number % len(tenants)], f"{receiver.url}/dead{number}")
    for tenant in tenants:
        tell(database, "ftjob-0", tenant=tenant)
    database.write(lambda session: session.execute(update(DeliveryRow).values(attempts=attempts)))
    patient = Sender(private=True, step_seconds=60, seconds=60)
    deliverer = Deliverer(database, SecretKey(KEY), patient, workers=8)
    stop = threading.Event()
    thread = threading.Thread(target=deliverer.serve, args=(stop,))
    thread.start()
    try:
        until(lambda: len(receiver.received) == most, 30)
        webhooks.create("beta", f"{receiver.url}/alive")
        for number in range(5):
            tell(database, f"ftjob-{number}", tenant="beta")
            until(lambda number=number: len(receiver.at("/alive")) == number + 1, 30)
        assert len(receiver.received) == most + 5, "and meanwhile no more of those that hang were sent to"
    finally:
        stop.set()
        receiver.release.set()
        thread.join()


def test_what_ended_long_ago_is_forgotten(
    database: Database, webhooks: Webhooks, deliverer: Deliverer, receiver: Receiver
) -> None:
    webhooks.create("acme", receiver.url)
    tell(database, "ftjob-1", "ftjob-2")
    deliverer.run_once()
    old = update(DeliveryRow).where(DeliveryRow.number == rows(database)[0].number)
    database.write(lambda session: session.execute(old.values(ended_at=now() - timedelta(days=31))))
    tell(database, "ftjob-3")
    deliverer._forget()
    assert [json.loads(row.body)["data"]["id"] for row in rows(database)] == ["ftjob-2", "ftjob-3"]


def until(what: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_many_deliverers_deliver_each_event_once_and_in_order(
    database: Database, webhooks: Webhooks, receiver: Receiver
) -> None:
    for number in range(3):
        webhooks.create("acme", f"{receiver.url}/{number}")
    jobs = [f"ftjob-{number}" for number in range(12)]
    stop = threading.Event()
    deliverers = [Deliverer(Database(database.url), SecretKey(KEY), SENDER, workers=4) for _ in range(3)]
    threads = [threading.Thread(target=each.serve, args=(stop,)) for each in deliverers]
    for thread in threads:
        thread.start()
    tell(database, *jobs)
    until(lambda: all(row.state == "delivered" for row in rows(database)), 60)
    stop.set()
    for thread in threads:
        thread.join()
    for number in range(3):
        assert jobs_of(receiver.at(f"/{number}")) == jobs
    for each in deliverers:
        each._claims._database.close()


KILLED = """
import sys
from swapmeet.database import Database
from swapmeet.secret_key import SecretKey
from swapmeet.webhooks import Deliverer, Sender
Deliverer(Database(sys.argv[1]), SecretKey(sys.argv[2]), Sender(private=True), claim_seconds=1).run_once()
"""


def test_one_killed_in_the_middle_is_soon_followed_by_another_with_the_same_id(
    database: Database, webhooks: Webhooks, deliverer: Deliverer, receiver: Receiver
) -> None:
    receiver.behaviours["/hook"] = in_turn(hang, answer(200))
    webhooks.create("acme", f"{receiver.url}/hook")
    tell(database, "ftjob-1", "ftjob-2")
    process = subprocess.Popen([sys.executable, "-c", KILLED, database.url, KEY])
    until(lambda: len(receiver.received) == 1, 60)
    time.sleep(1.5)
    assert deliverer.run_once() == 0, "it is the other's as long as that lives, which is longer than its claim lasts"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = settled(database, deliverer, seconds=5)
    assert [(row.state, row.attempts) for row in done] == [("delivered", 2), ("delivered", 1)]
    assert jobs_of(receiver.received) == ["ftjob-1", "ftjob-1", "ftjob-2"]
    assert receiver.received[0].id == receiver.received[1].id
    assert Deliverer(database, SecretKey(KEY))._claims._lasts <= timedelta(seconds=6)


def test_one_that_lost_its_claim_changes_nothing(
    database: Database, webhooks: Webhooks, deliverer: Deliverer, receiver: Receiver
) -> None:
    """It is stopped in mid-attempt; meanwhile another delivers, and its failure comes too late to count."""
    receiver.behaviours["/hook"] = in_turn(hang, answer(200))
    webhooks.create("acme", f"{receiver.url}/hook")
    tell(database, "ftjob-1")
    process = subprocess.Popen([sys.executable, "-c", KILLED, database.url, KEY])
    until(lambda: len(receiver.received) == 1, 60)
    process.send_signal(signal.SIGSTOP)
    settled(database, deliverer)
    process.send_signal(signal.SIGCONT)
    receiver.release.set()
    assert process.wait(60) == 0
    (row,) = rows(database)
    assert (row.state, row.error, row.attempts) == ("delivered", None, 2)


def test_one_that_is_told_to_stop_ends_what_it_began(
    database: Database, webhooks: Webhooks, deliverer: Deliverer, receiver: Receiver
) -> None:
    """It keeps its claim meanwhile, and begins nothing more."""
    receiver.behaviours["/hook"] = lambda handler: (hang(handler), answer(200)(handler))[1]
    webhooks.create("acme", f"{receiver.url}/hook")
    tell(database, "ftjob-1", "ftjob-2")
    leaving = Deliverer(database, SecretKey(KEY), Sender(private=True), claim_seconds=0.5)
    stop = threading.Event()
    thread = threading.Thread(target=leaving.serve, args=(stop,))
    thread.start()
    until(lambda: len(receiver.received) == 1, 10)
    stop.set()
    time.sleep(1.5)
    assert deliverer.run_once() == 0
    receiver.release.set()
    thread.join()
    assert [row.state for row in rows(database)] == ["delivered", "pending"]


def test_a_secret_that_can_not_be_read_is_said_and_tried_again(
    database: Database, webhooks: Webhooks, deliverer: Deliverer, receiver: Receiver
) -> None:
    webhooks.create("acme", receiver.url)
    tell(database, "ftjob-1")
    stranger = Deliverer(database, SecretKey(Fernet.generate_key().decode()), SENDER, backoff=Backoff(first=0.01))
    stranger.run_once()
    assert "under another key" in str(rows(database)[0].error)
    assert receiver.received == []
    assert settled(database, deliverer)[0].state == "delivered"


def test_neither_secrets_nor_passwords_lie_in_the_database(
    database: Database, webhooks: Webhooks, receiver: Receiver
) -> None:
    _, secret = webhooks.create("acme", "http://ana:hunter2@127.0.0.1/hook")
    row = database.read(lambda session: session.scalars(select(WebhookRow)).one())
    stored = repr({column.name: getattr(row, column.key) for column in WebhookRow.__table__.columns})
    assert secret not in stored
    assert secret.removeprefix("whsec_")[:-4] not in stored
    assert "hunter2" not in stored
    assert "ana" not in stored
    assert row.url == "http://127.0.0.1/hook"


def test_pauses_grow_to_an_hour_and_differ() -> None:
    backoff = Backoff()
    for attempts in (1, 2, 5, 30, 10**6):
        most = min(3600.0, 5 * 2.0 ** min(attempts - 1, 30))
        pauses = {backoff.after(attempts).total_seconds() for _ in range(50)}
        assert most / 2 <= min(pauses) < max(pauses) <= most
