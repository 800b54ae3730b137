"""Webhooks over HTTP: the unmodified client makes, tries, rotates and deletes them; what was delivered is told."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from cryptography.fernet import Fernet

from swapmeet.cli import main
from swapmeet.database import Database
from swapmeet.database.tables import TenantRow
from swapmeet.gateway import webhooks as routes
from swapmeet.gateway.app import create_app
from swapmeet.gateway.listener import event_loop, listening
from swapmeet.gateway.services import Services
from swapmeet.secret_key import SecretKey
from swapmeet.tenancy import Tenancy
from swapmeet.webhooks import EVENTS, Deliverer, Sender, Webhooks, announce
from swapmeet.webhooks.endpoints import MOST_WEBHOOKS
from swapmeet_registry import Fingerprint, Registry

DIGEST = "sha256:" + "0" * 64
KEY = SecretKey(Fernet.generate_key().decode())
SENDER = Sender(private=True, step_seconds=0.5, seconds=1)
SUCCEEDED = "fine_tuning.job.succeeded"
Client = Callable[..., openai.OpenAI]


class Inbox:
    """A server that keeps what it gets, and answers with `status`."""

    def __init__(self) -> None:
        self.received: list[tuple[dict[str, str], str]] = []
        self.status = 200
        self.url = ""


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    inbox = Inbox()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            inbox.received.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(inbox.status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    inbox.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield inbox
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def serve(database: Database, tmp_path: Path) -> Iterator[Callable[[Sender], Client]]:
    """`serve(sender)("acme")`: an `openai` client with a key of this tenant that may do everything there."""
    database.write(lambda session: session.add_all([TenantRow(name=name) for name in ("acme", "beta")]))
    tenancy = Tenancy(database)
    replicas: Any = None
    base = Fingerprint(name="tiny", weights=DIGEST, tokenizer=DIGEST)
    app = create_app(Services(Registry(f"file://{tmp_path}/registry"), tenancy, base, replicas))
    made: list[openai.OpenAI] = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def of(tenant: str, role: str = "owner") -> openai.OpenAI:
        url, key = f"http://127.0.0.1:{port}/v1", tenancy.keys.create(tenant, [role]).key
        made.append(openai.OpenAI(base_url=url, api_key=key, max_retries=0))
        return made[-1]

    def start(sender: Sender) -> Client:
        routes.install(app, Webhooks(database, KEY, sender))
        return of

    with event_loop() as loop, listening(app, loop, "127.0.0.1", port, drain=5):
        yield start
    for each in made:
        each.close()


@pytest.fixture
def client(serve: Callable[[Sender], Client]) -> Client:
    return serve(SENDER)


def call(client: openai.OpenAI, method: str, path: str, body: Any = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {client.api_key}", "content-type": "application/json"}
    content = None if body is None else json.dumps(body)  # which writes what is no UTF-8, too
    return httpx.request(method, f"{client.base_url}{path}", content=content, headers=headers, trust_env=False)


def test_the_client_manages_webhooks(client: Client, inbox: Inbox) -> None:
    ana = client("acme")
    assert ana.webhooks.event_types.list().data == list(EVENTS)
    made = ana.webhooks.create(event_types=[SUCCEEDED], name="Ünsere", url=inbox.url)
    assert made.signing_secret.startswith("whsec_")
    assert made.signing_secret_hint == "whsec_…" + made.signing_secret[-4:]
    other = ana.webhooks.create(event_types=["fine_tuning.job.failed"], name="", url=inbox.url)
    assert [each.id for each in ana.webhooks.list(limit=1)] == [other.id, made.id]
    shown = ana.webhooks.retrieve(made.id)
    assert (shown.name, shown.url, shown.event_types) == ("Ünsere", inbox.url, [SUCCEEDED])
    assert made.signing_secret not in shown.model_dump_json()
    changed = ana.webhooks.update(made.id, event_types=list(EVENTS), url=inbox.url + "?x=1")
    assert (changed.name, changed.url, changed.event_types) == ("Ünsere", inbox.url + "?x=1", list(EVENTS))
    tried = ana.webhooks.test(made.id, event_type="fine_tuning.job.cancelled")
    assert (tried.status_code, tried.success, tried.webhook_endpoint_id) == (200, True, made.id)
    headers, body = inbox.received[0]
    event: Any = ana.webhooks.unwrap(body, headers, secret=made.signing_secret)
    assert (event.type, event.data.id) == ("fine_tuning.job.cancelled", "ftjob-sample")
    gone = ana.webhooks.delete(made.id)
    assert (gone.id, gone.deleted, gone.object) == (made.id, True, "webhook_endpoint.deleted")
    with pytest.raises(openai.NotFoundError):
        ana.webhooks.retrieve(made.id)


def test_a_secret_is_replaced_at_once_or_after_a_day(client: Client, inbox: Inbox, database: Database) -> None:
    ana = client("acme")
    made = ana.webhooks.create(event_types=[SUCCEEDED], name="", url=inbox.url)
    kept = ana.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    database.write(lambda session: announce(session, "acme", SUCCEEDED, "ftjob-1"))
    deliverer = Deliverer(database, KEY, SENDER)
    deliverer.run_once()
    for secret in (made.signing_secret, kept.signing_secret):
        ana.webhooks.unwrap(inbox.received[0][1], inbox.received[0][0], secret=secret)
    last = ana.webhooks.rotate_secret(made.id)
    database.write(lambda session: announce(session, "acme", SUCCEEDED, "ftjob-2"))
    deliverer.run_once()
    headers, body = inbox.received[1]
    ana.webhooks.unwrap(body, headers, secret=last.signing_secret)
    for secret in (made.signing_secret, kept.signing_secret):
        with pytest.raises(openai.InvalidWebhookSignatureError):
            ana.webhooks.unwrap(body, headers, secret=secret)
    assert call(ana, "POST", f"webhooks/{made.id}/rotate_secret").json()["signing_secret"], "without a body, too"


def test_deliveries_are_told_and_can_be_repeated(client: Client, inbox: Inbox, database: Database) -> None:
    ana = client("acme")
    hook = call(ana, "POST", "webhooks", {"url": inbox.url}).json()
    assert hook["event_types"] == list(EVENTS)
    for number in range(3):
        database.write(lambda session, number=number: announce(session, "acme", SUCCEEDED, f"ftjob-{number}"))
    inbox.status = 500
    Deliverer(database, KEY, SENDER).run_once()
    path = f"webhooks/{hook['id']}/deliveries"
    page = call(ana, "GET", f"{path}?limit=2").json()
    assert (len(page["data"]), page["has_more"]) == (2, True)
    rest = call(ana, "GET", f"{path}?limit=2&after={page['last_id']}").json()
    assert (len(rest["data"]), rest["has_more"]) == (1, False)
    first = rest["data"][0]
    assert (first["state"], first["attempts"], first["error"]) == ("pending", 1, "answered 500")
    assert json.loads(first["body"])["data"] == {"id": "ftjob-0"}
    assert first["next_attempt_at"] <= first["gives_up_at"]
    inbox.status = 200
    again = call(ana, "POST", f"{path}/{first['id']}/retry").json()
    assert again["state"] == "pending"
    Deliverer(database, KEY, SENDER).run_once()
    states = [(each["state"], each["error"]) for each in call(ana, "GET", path).json()["data"]]
    assert states == [("delivered", None)] * 3
    assert [json.loads(body)["data"]["id"] for _, body in inbox.received] == ["ftjob-0"] * 2 + ["ftjob-1", "ftjob-2"]


def test_another_tenants_webhook_does_not_exist(client: Client, inbox: Inbox, database: Database) -> None:
    ana, ben = client("acme"), client("beta")
    hook = ana.webhooks.create(event_types=[SUCCEEDED], name="", url=inbox.url)
    database.write(lambda session: announce(session, "acme", SUCCEEDED, "ftjob-1"))
    delivery = call(ana, "GET", f"webhooks/{hook.id}/deliveries").json()["data"][0]["id"]
    assert list(ben.webhooks.list()) == []
    requests = [
        ("GET", ""), ("POST", ""), ("DELETE", ""), ("POST", "/rotate_secret"), ("POST", "/test"),
        ("GET", "/deliveries"), ("POST", f"/deliveries/{delivery}/retry"),
    ]  # fmt: skip
    for prefix in ("webhooks", "webhook_endpoints"):
        for method, path in requests:
            body = {} if method == "POST" else None
            theirs = call(ben, method, f"{prefix}/{hook.id}{path}", body)
            none = call(ben, method, f"{prefix}/whep_none{path}", body)
            assert theirs.status_code == none.status_code == 404, (method, path)
            assert theirs.json()["error"]["message"] == none.json()["error"]["message"].replace("whep_none", hook.id)
    own = ben.webhooks.create(event_types=[SUCCEEDED], name="", url=inbox.url)
    assert call(ben, "POST", f"webhooks/{own.id}/deliveries/{delivery}/retry", {}).status_code == 404
    assert call(ben, "GET", f"webhooks/{own.id}/deliveries?after={delivery}").status_code == 404
    assert ana.webhooks.retrieve(hook.id).id == hook.id


def test_scopes_are_asked_for(client: Client, inbox: Inbox) -> None:
    reader = client("acme", "reader")
    hook = client("acme").webhooks.create(event_types=[SUCCEEDED], name="", url=inbox.url)
    assert [each.id for each in reader.webhooks.list()] == [hook.id]
    with pytest.raises(openai.PermissionDeniedError, match="admin"):
        reader.webhooks.delete(hook.id)
    with pytest.raises(openai.AuthenticationError):
        reader.with_options(api_key="sm-none").webhooks.list()


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "url"),
    ({"url": "ftp://x/"}, "https://"),
    ({"url": "nonsense"}, "https://"),
    ({"url": "http://x/" + "y" * 2000}, "url"),
    ({"url": "http://x/", "event_types": []}, "event_types"),
    ({"url": "http://x/", "event_types": ["batch.completed", "x"]}, "'batch.completed', 'x'"),
    ({"url": "http://x/", "name": "a\0"}, "name"),
    ({"url": "http://x/", "name": "a" * 101}, "name"),
    ({"url": "http://x/", "name": "\ud800"}, "name"),
    ({"url": "http://x/", "secret": "mine"}, "secret"),
]


@pytest.mark.parametrize(("body", "word"), BAD)
def test_a_bad_webhook_is_refused(body: dict[str, Any], word: str, client: Client) -> None:
    answer = call(client("acme"), "POST", "webhooks", body)
    assert answer.status_code == 400
    assert word in answer.json()["error"]["message"]
    assert list(client("acme").webhooks.list()) == []


@pytest.mark.parametrize("id_", ["%00", "a" * 3000, "%F0%9F%A6%8A", "..%2Fx", "whep_%0a"])
def test_odd_ids_are_not_found(id_: str, client: Client) -> None:
    ana = client("acme")
    for path in (f"webhooks/{id_}", f"webhooks/{id_}/deliveries", f"webhooks?after={id_}"):
        assert call(ana, "GET", path).status_code == 404, path


def test_there_are_so_many_and_no_more(client: Client, inbox: Inbox) -> None:
    ana = client("acme")
    failed: list[int] = []

    def make() -> None:
        for _ in range(MOST_WEBHOOKS // 4 + 1):
            failed.append(call(ana, "POST", "webhooks", {"url": inbox.url}).status_code)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(failed) == [200] * MOST_WEBHOOKS + [400] * 4
    assert len(list(ana.webhooks.list())) == MOST_WEBHOOKS
    assert len(list(client("beta").webhooks.list())) == 0


def test_private_addresses_are_refused_at_once(serve: Callable[[Sender], Client], inbox: Inbox) -> None:
    ana = serve(Sender())("acme")
    for url in (inbox.url, "http://localhost/x", "http://169.254.169.254/latest", "http://[::1]/"):
        answer = call(ana, "POST", "webhooks", {"url": url})
        assert answer.status_code == 400
        assert "private address" in answer.json()["error"]["message"]
    made = call(ana, "POST", "webhooks", {"url": "https://no-such-host.invalid/x"}).json()
    tried = call(ana, "POST", f"webhooks/{made['id']}/test", {})
    assert tried.status_code == 400
    assert tried.json()["error"]["code"] == "webhook_failed"
    assert "no address" in tried.json()["error"]["message"]
    assert inbox.received == []


def test_an_endpoint_that_refuses_a_test_is_told_with_its_status(client: Client, inbox: Inbox) -> None:
    ana = client("acme")
    hook = ana.webhooks.create(event_types=[SUCCEEDED], name="", url=inbox.url)
    inbox.status = 503
    assert ana.webhooks.test(hook.id, event_type=SUCCEEDED).status_code == 503
    assert call(ana, "GET", f"webhooks/{hook.id}/deliveries").json()["data"] == []
    with pytest.raises(openai.BadRequestError, match="There are no events"):
        ana.webhooks.test(hook.id, event_type="batch.completed")


def test_the_command_line_does_the_same(
    client: Client, inbox: Inbox, database: Database, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    ana = client("acme")
    monkeypatch.setenv("SWAPMEET_URL", str(ana.base_url).removesuffix("/v1/"))
    monkeypatch.setenv("SWAPMEET_API_KEY", ana.api_key)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["swapmeet", "webhook", *arguments])
        try:
            main()
            code = 0
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    code, out = run("create", inbox.url, "--event", SUCCEEDED, "--name", "ours")
    assert code == 0
    id_, secret = out.splitlines()[0], out.split()[-1]
    assert secret.startswith("whsec_")
    assert run("list")[1].split("\t")[:5] == [id_, "ours", inbox.url, SUCCEEDED, f"whsec_…{secret[-4:]}"]
    assert json.loads(run("list", "--json")[1])["webhooks"][0]["id"] == id_
    assert run("test", id_) == (0, "The URL answered 200\n")
    ana.webhooks.unwrap(inbox.received[0][1], inbox.received[0][0], secret=secret)
    inbox.status = 500
    assert run("test", id_) == (1, "The URL answered 500\n")
    database.write(lambda session: announce(session, "acme", SUCCEEDED, "ftjob-1"))
    Deliverer(database, KEY, SENDER).run_once()
    delivery, kind, state, attempts, *_, error = run("deliveries", id_)[1].rstrip("\n").split("\t")
    assert (kind, state, attempts, error) == (SUCCEEDED, "pending", "1", "answered 500")
    assert run("retry", id_, delivery) == (0, f"{delivery} will be delivered again\n")
    assert run("rotate", id_, "--keep-old")[1].split()[-1] != secret
    assert run("delete", id_) == (0, f"{id_} is deleted\n")
    code, out = run("delete", id_)
    assert (code, out) == (1, f"swapmeet: You have no webhook {id_!r}. List your webhooks.\n")
    assert run("create", "nonsense")[0] == 1
