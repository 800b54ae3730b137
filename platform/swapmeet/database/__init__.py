"""The platform's records in SQL: SQLite where nothing is set, PostgreSQL by URL.

database.py     sessions that read or write, and what is tried again
clock.py        its present moment
group_commit.py one commit for all who wait to write to SQLite
tables/         what is recorded, a module per area
migrations/     how older databases become newer ones (Alembic)
"""

from swapmeet.database.database import Database

__all__ = ["Database"]
