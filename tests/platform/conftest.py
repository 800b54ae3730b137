"""Databases to test on, an SQLite file each or one of the real PostgreSQL; and the whole API over one."""

import hashlib
import json
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import openai
import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from swapmeet import following
from swapmeet.cli import main
from swapmeet.database import Database
from swapmeet.database.migrations import upgrade
from swapmeet.database.tables import CheckpointRow, EventRow, FileRow, JobRow, PublishRow, TenantRow
from swapmeet.database.tables.base import now
from swapmeet.gateway.app import create_app
from swapmeet.gateway.assembly import assemble
from swapmeet.gateway.listener import event_loop, listening
from swapmeet.gateway.services import Services
from swapmeet.gateway.tuning import Tuning, build_tuning, tended
from swapmeet.ids import new_id
from swapmeet.jobs import Jobs
from swapmeet.queue.dispatcher import Machine
from swapmeet.settings import load_settings
from swapmeet.tenancy import OPERATOR, Tenancy
from swapmeet_registry import Fingerprint, Registry, open_store
from swapmeet_registry.admission.admit import admit
from swapmeet_registry.bases import BaseLibrary
from swapmeet_registry.fingerprint import fingerprint
from swapmeet_registry.stores import Store
from swapmeet_serving import Call, Chunk, join

DIGEST = "sha256:" + "0" * 64


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/swapmeet.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with all tables, of either kind."""
    database = Database(database_url)
    upgrade(database)
    yield database
    database.close()


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """`command_line("jobs", "list")`: run a command in this process; gives exit code, output and errors."""

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["swapmeet", *map(str, arguments)])
        code: object = None
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code
        return Done(code if isinstance(code, int) else int(code is not None), *capsys.readouterr())

    return call


@pytest.fixture
def tenancy(tmp_path: Path) -> Iterator[Tenancy]:
    """Tenants and keys of a gateway under test, in an SQLite file."""
    database = Database(f"sqlite:///{tmp_path}/tenancy.db")
    upgrade(database)
    yield Tenancy(database)
    database.close()


@pytest.fixture
def key_of(tenancy: Tenancy) -> Callable[..., str]:
    """`key_of("acme", "infer")`: a new key of a tenant's, which is made if it is not there."""

    def make(tenant: str, *scopes: str) -> str:
        tenancy.tenants.ensure(tenant)
        return tenancy.keys.create(tenant, scopes).key

    return make


@pytest.fixture
def looks_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Registry], list[str]]:
    """`looks_at(registry)`: what is asked of what keeps it, from now on."""

    def watch(registry: Registry) -> list[str]:
        found: list[str] = []
        backend = type(registry.backend)
        for name in ("head", "names", "manifest", "blob"):
            original = getattr(backend, name)

            def noted(self: Any, *arguments: Any, original: Any = original, name: str = name) -> Any:
                found.append(name)
                return original(self, *arguments)

            monkeypatch.setattr(backend, name, noted)
        return found

    return watch


class Clock:
    """Stands still unless it is set."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def job_row() -> Callable[..., JobRow]:
    """`job_row(**changes)`: a new job of `acme`'s, on the tiny Llama and `file-1`."""

    def make(**changes: Any) -> JobRow:
        values: dict[str, Any] = {
            "id": f"ftjob-{uuid4().hex[:24]}",
            "tenant": "acme",
            "created_by": "key_1",
            "created_at": now(),
            "request_digest": uuid4().hex,
            "model": "tiny-llama",
            "base": "tiny-llama",
            "adapter": "acme/dates",
            "training_file": "file-1",
            "method": "supervised",
            "seed": 1,
            "hyperparameters": {},
            "lora": {},
            "settings": {},
            "resources": {},
            "plan": {},
            "job_metadata": {},
            "integrations": [],
        }
        return JobRow(**values | changes)

    return make


@pytest.fixture(scope="session")
def keep_file() -> Callable[..., None]:
    """`keep_file(database, store, id, data, **changes)`: a checked file of `acme` in database and storage."""

    def keep(database: Database, store: Store, name: str, data: bytes, **changes: Any) -> None:
        digest = hashlib.sha256(data).hexdigest()
        values: dict[str, Any] = {"filename": "dates.jsonl", "purpose": "fine-tune", "status": "processed"}
        values |= {"tenant": "acme", "bytes": len(data), "sha256": digest}
        database.write(lambda session: session.merge(FileRow(id=name, **values | changes)))
        store.put(f"files/{name}", data, digest)

    return keep


@dataclass(frozen=True)
class TuningServer:
    """Files, uploads and jobs, listening on loopback for OpenAI's own client."""

    url: str
    tuning: Tuning
    key_of: Callable[..., str]
    clients: list[openai.OpenAI] = field(default_factory=list)

    def client(self, tenant: str = "acme", **options: Any) -> openai.OpenAI:
        http = openai.DefaultHttpxClient(trust_env=False, timeout=60)
        options = {"max_retries": 0, "http_client": http} | options
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key_of(tenant), **options)
        self.clients.append(client)
        return client


@pytest.fixture
def tuning_server(database: Database, tmp_path: Path) -> Iterator[TuningServer]:
    """The gateway over a database of either kind, with the tenants `acme` and `beta` and the base `tiny`."""
    settings = load_settings(home=tmp_path / "home", base="tiny")
    database.write(lambda session: session.add_all([TenantRow(name=name) for name in ("acme", "beta")]))
    registry = Registry(settings.registry_url)
    tuning = build_tuning(settings, database, registry, Jobs(database))
    tuning = replace(tuning, machines=lambda: [Machine("here", 2, 0, 8 << 30, 2, 8 << 30)])  # no Ray runs
    tenancy = Tenancy(database)
    fingerprint = Fingerprint(name="tiny", weights=DIGEST, tokenizer=DIGEST)
    replicas: Any = None
    app = create_app(Services(registry, tenancy, fingerprint, replicas), tuning=tuning)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with event_loop() as loop, tended(tuning), listening(app, loop, "127.0.0.1", port, drain=5):
        server = TuningServer(
            f"http://127.0.0.1:{port}",
            tuning,
            lambda tenant, scope="developer": tenancy.keys.create(tenant, [scope]).key,
        )
        yield server
        for client in server.clients:
            client.close()


class Echo:
    """Replicas that answer at once."""

    async def generate(self, call: Call) -> AsyncIterator[Chunk]:
        for index in range(call.n):
            yield Chunk(
                index=index, text="ok", token_ids=(1,), finish_reason="stop", prompt_tokens=4, completion_tokens=1
            )

    async def answer(self, call: Call) -> tuple[Chunk, ...]:
        return tuple(join([each]) for each in [chunk async for chunk in self.generate(call)])

    async def describe(self) -> dict[str, Any]:
        return {}

    async def measurements(self) -> list[Any]:
        return []

    async def state(self) -> str:
        return "ready"


EXAMPLE = {"messages": [{"role": "user", "content": "3 May"}, {"role": "assistant", "content": "05-03"}]}


@dataclass
class Platform:
    """The whole API as it is deployed, but for the engines; tenants, and every secret that was given out."""

    client: TestClient
    tenancy: Tenancy
    registry: Registry
    base: Fingerprint
    adapter: Path
    home: Path
    keys: dict[str, str] = field(default_factory=dict)
    secrets: set[str] = field(default_factory=set)

    def add(self, tenant: str, role: str = "owner") -> str:
        """A tenant's new key, by which it asks from now on."""
        self.tenancy.tenants.ensure(tenant)
        self.keys[tenant] = self.tenancy.keys.create(tenant, [role]).key
        self.secrets.add(self.keys[tenant])
        return self.keys[tenant]

    def ask(self, who: str, method: str, path: str, **more: Any) -> Any:
        """A request of a tenant's; what it answers in secrets is remembered."""
        headers = {"authorization": f"Bearer {self.keys[who]}"} | more.pop("headers", {})
        answer = self.client.request(method, path, headers=headers, **more)
        told = answer.headers.get("content-type") == "application/json" and method != "HEAD"
        if told and isinstance(body := answer.json(), dict):
            self.secrets |= {body[each] for each in ("value", "signing_secret") if each in body}
        return answer

    def do(self, who: str, method: str, path: str, **more: Any) -> dict[str, Any]:
        """A request that is answered well."""
        answer = self.ask(who, method, f"/v1/{path}", **more)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def upload(self, who: str, name: str) -> str:
        """A file to train on, when it was checked."""
        content = (json.dumps(EXAMPLE) + "\n") * 12
        form = {"files": {"file": (name, content.encode())}, "data": {"purpose": "fine-tune"}}
        made = str(self.do(who, "POST", "files", **form)["id"])
        until = time.monotonic() + 120
        while self.do(who, "GET", f"files/{made}")["status"] == "uploaded":
            assert time.monotonic() < until
            time.sleep(0.1)
        return made

    def furnish(self, who: str, friend: str) -> dict[str, str]:
        """Have a tenant own one of everything; gives the ids by kind."""
        model, scopes = f"{who}/legal", {"scopes": ["infer"]}
        version = self.registry.push(self.adapter, model, base=self.base, alias="prod")
        self.registry.push(self.adapter, model, base=self.base)
        own = {"tenant": who, "model": model, "pinned": version.pinned, "checkpoint": new_id("ftckpt-")}
        own["adapter_upload"] = new_id("publish-")
        own |= {"key": self.do(who, "POST", "keys", json=scopes)["id"]}
        own |= {"file": self.upload(who, f"{who}.jsonl"), "held_out": self.upload(who, f"{who}-held-out.jsonl")}
        wanted = {"bytes": 6, "filename": f"{who}.txt", "mime_type": "text/plain", "purpose": "user_data"}
        own["upload"] = self.do(who, "POST", "uploads", json=wanted)["id"]
        part = {"files": {"data": ("blob", who[:3].encode())}}
        own["part"] = self.do(who, "POST", f"uploads/{own['upload']}/parts", **part)["id"]
        hook = {"url": f"http://127.0.0.1:9/{who}"}
        own["webhook"] = self.do(who, "POST", "webhooks", json=hook)["id"]
        own["endpoint"] = self.do(who, "POST", "webhook_endpoints", json=hook)["id"]
        job = {"model": "tiny", "training_file": own["file"]}
        ended = self.do(who, "POST", "fine_tuning/jobs", json=job | {"suffix": "ended"})["id"]
        self.do(who, "POST", f"fine_tuning/jobs/{ended}/cancel")
        own["job"] = self.do(who, "POST", "fine_tuning/jobs", json=job | {"metadata": {"team": who}})["id"]
        tried = {"validation_file": own["held_out"], "suffix": "tried", "sweep": {"grid": {"rank": [2, 4]}}}
        own["sweep"] = self.do(who, "POST", "fine_tuning/sweeps", json=job | tried)["id"]
        for kind in ("webhook", "endpoint"):
            (told,) = self.do(who, "GET", f"webhooks/{own[kind]}/deliveries")["data"]
            own[f"{kind}_delivery"] = told["id"]
        grant = {"project_ids": [friend]}
        granted = self.do(who, "POST", f"fine_tuning/checkpoints/{model}/permissions", json=grant)
        own["permission"] = granted["data"][0]["id"]

        def publish(session: Any) -> str:
            row = CheckpointRow(id=own["checkpoint"], job=own["job"], step=1, model=model, digest=DIGEST, metrics={})
            session.add(row)
            coming = {"path": "adapter_config.json", "size": 1, "sha256": "0" * 64}
            session.add(
                PublishRow(
                    id=own["adapter_upload"],
                    tenant=who,
                    adapter=model,
                    request={"base": "tiny", "files": [coming]},
                    bytes=1,
                    expires_at=now() + timedelta(days=1),
                )
            )
            session.get_one(JobRow, own["job"]).attempt = 1
            return str(session.scalars(select(EventRow.id).where(EventRow.job == own["job"])).first())

        own["event"] = self.tenancy.database.write(publish)
        log = f"a line of {who}'s\n".encode()
        open_store(f"file://{self.home}/storage").put(
            f"runs/{own['job']}/1/log/000001.txt", log, hashlib.sha256(log).hexdigest()
        )
        told = self.do(who, "GET", f"fine_tuning/sweeps/{own['sweep']}/events?limit=1")
        own["sweep_event"] = told["data"][0]["id"]
        own["audit"] = self.do(who, "GET", "audit?limit=1")["data"][0]["id"]
        return own


@pytest.fixture(scope="session")
def published(
    tiny_llama: Path, random_lora: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Fingerprint, Path]:
    """A base's fingerprint, and an adapter's folder, with its files as the registry writes them."""
    base, folder = fingerprint(tiny_llama, "tiny"), tmp_path_factory.mktemp("lora") / "adapter"
    with admit(random_lora(tiny_llama, folder.with_name("raw")), base) as admitted:
        shutil.copytree(admitted.folder, folder)
    return base, folder


@pytest.fixture
def platform(database_url: str, published: tuple[Fingerprint, Path], tmp_path: Path) -> Iterator[Platform]:
    """The whole API, with the operator as its only tenant."""
    yield from opened(database_url, published, tmp_path / "home")


@pytest.fixture
def hub(platform: Platform, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    """The API on loopback, which `SWAPMEET_URL` names, with a key of `acme`'s."""
    BaseLibrary(platform.home).add(str(tiny_llama), "tiny")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("SWAPMEET_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("SWAPMEET_API_KEY", platform.add("acme"))
    monkeypatch.setenv("SWAPMEET_HOME", str(platform.home.parent / "elsewhere"))
    monkeypatch.setattr(following, "POLL_SECONDS", 0.01)
    with event_loop() as loop, listening(platform.client.app, loop, "127.0.0.1", port, drain=5):
        yield platform


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared_platform(
    request: pytest.FixtureRequest, published: tuple[Fingerprint, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    """As `platform`, for all tests of a file, on a database of either kind."""
    folder = tmp_path_factory.mktemp("platform")
    url = f"sqlite:///{folder}/swapmeet.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("shared_postgres_url")
    yield from opened(url, published, folder / "home")


def opened(database_url: str, published: tuple[Fingerprint, Path], home: Path) -> Iterator[Platform]:
    settings = load_settings(home=home, base="tiny", database=database_url, webhook_private=True)
    home.mkdir()
    created = Database(database_url)
    upgrade(created)
    created.close()
    replicas: Any = Echo()
    app = assemble(settings, published[0], replicas, background=lambda *parts: tended(parts[2]))
    services = app.state.services
    with TestClient(app, raise_server_exceptions=False) as client:
        platform = Platform(client, services.tenancy, services.registry, *published, home)
        platform.add(OPERATOR)
        yield platform
    services.tenancy.database.close()
