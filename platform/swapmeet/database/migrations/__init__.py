"""Bring a database to the tables of this version; several processes may try at once."""

from pathlib import Path
from typing import TYPE_CHECKING

from swapmeet.database.database import Database, database_errors
from swapmeet.errors import DatabaseFailed

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

LOCK = 0x5357_4150
"""PostgreSQL's advisory lock of whoever migrates."""


def upgrade(database: Database) -> None:
    """Make or change tables up to this version, all of it or nothing.

    Raises:
        DatabaseFailed: the database can not be used, or a newer version of Swapmeet has changed it.
    """
    from alembic import command
    from alembic.util import CommandError

    with database_errors(), database.engine.execution_options(swapmeet_writes=True).begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
        try:
            command.upgrade(_config(connection), "head")
        except CommandError as error:
            raise DatabaseFailed(
                f"The database is not of this version of Swapmeet ({error}). Start the newest version that used it."
            ) from error


def _config(connection: "Connection") -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    return config
