"""Insert a row or deal with the one that is there, in one statement, on either database."""

from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from swapmeet.database.tables.base import Table


def insert_on(session: Session, table: type[Table]) -> Any:
    """An `INSERT` that takes `on_conflict_do_nothing` and `on_conflict_do_update`, which both databases spell alike."""
    insert: Any = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    return insert(table)
