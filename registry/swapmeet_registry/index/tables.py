"""The index's tables, and how they are made anew.

A row of `index_versions` is one version with all that a list of results shows, so that a search reads one table. The
words stand in `index_words`, which each database has in its own way. Nothing here is ever migrated: another `SCHEMA`
drops all of it, and the next refresh reads the registry again.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    column,
    inspect,
    select,
    table,
)

SCHEMA = 1
"""To be raised with any change of the tables, or of what stands in them."""
WORDS = "index_words"
COLUMNS = ("name", "labels", "purpose", "body")
WEIGHTS = (10.0, 5.0, 3.0, 1.0)
"""How much a word counts, by the column that it stands in."""
MOST_KEY = 200
"""Letters of a text that is compared: a database's own indexes take no more than some."""
PASSING = ("public", "tenant", "adapter", "rank", "size")
"""What a row is passed over for without being read: it stands in the indexes, too, that searches walk along."""
STATISTICS = 500
"""How closely PostgreSQL looks at which words are common: a question may be the half of one."""

_METADATA = MetaData()
Id = BigInteger().with_variant(Integer, "sqlite")

STATE = Table("index_state", _METADATA, Column("schema", Integer, primary_key=True, autoincrement=False))

ADAPTERS = Table(
    "index_adapters",
    _METADATA,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("name", String(127), nullable=False, unique=True),
    Column("changes", BigInteger, nullable=False),  # how often it was written: who read it earlier must not write
    Column("stamp", String(200), nullable=False),  # the head's, as a listing tells it; "" where that is not known
    Column("likes", Integer, nullable=False),
    Column("downloads", Integer, nullable=False),
)
"""Adapters that have a version to be found."""

VERSIONS = Table(
    "index_versions",
    _METADATA,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("adapter", Id, ForeignKey("index_adapters.id", ondelete="CASCADE"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("newest", SmallInteger, nullable=False),  # 1: of those that are usable
    Column("usable", SmallInteger, nullable=False),  # 1: not withdrawn
    Column("public", SmallInteger, nullable=False),
    Column("tenant", String(63), nullable=False),
    Column("created_at", String(27), nullable=False),
    Column("likes", Integer, nullable=False),
    Column("downloads", Integer, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("parameters", BigInteger, nullable=False),
    Column("weights", Text, nullable=False),
    Column("base_key", Text, nullable=False),  # as the next two, folded: how they are compared
    Column("license_key", Text),
    Column("task_key", Text),
    Column("name", String(127), nullable=False),
    Column("digest", String(71), nullable=False),
    Column("shown", Text, nullable=False),  # the rest of what a result shows, as JSON
    Column("withdrawn", String(10)),
    Index("ix_index_versions_adapter", "adapter", "version"),
    Index("ix_index_versions_digest", "digest"),
    *(
        Index(f"ix_index_versions_{which}_{sort}", which, *dict.fromkeys((sort, "created_at", "id")), *PASSING)
        for which in ("newest", "usable")
        for sort in ("created_at", "likes", "downloads")
    ),
    *(Index(f"ix_index_versions_{each}", each) for each in ("tenant", "weights", "base_key", "license_key")),
)

READERS = Table(
    "index_readers",
    _METADATA,
    Column("tenant", String(63), primary_key=True),
    Column("adapter", Id, ForeignKey("index_adapters.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Index("ix_index_readers_adapter", "adapter"),
)
"""Tenants that an adapter is shared with."""

TAGS = Table(
    "index_tags",
    _METADATA,
    Column("tag", Text, primary_key=True),
    Column("id", Id, ForeignKey("index_versions.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Index("ix_index_tags_id", "id"),
)
METRICS = Table(
    "index_metrics",
    _METADATA,
    Column("id", Id, ForeignKey("index_versions.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("value", Double, nullable=False),
    Index("ix_index_metrics_name_value", "name", "value"),
)
FILES = Table(
    "index_files",
    _METADATA,
    Column("sha256", String(64), primary_key=True),
    Column("id", Id, ForeignKey("index_versions.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Index("ix_index_files_id", "id"),
)
METADATA = _METADATA
"""All but the words."""

WORD_TABLE = table(WORDS, column("rowid"), column("id"), column("words"), *map(column, COLUMNS))
"""Of its columns SQLite has `rowid` and one for each of `COLUMNS`, PostgreSQL `id` and `words`."""


def recreate(connection: Connection) -> None:
    """Drop the tables, if they are there, and make them, empty."""
    connection.exec_driver_sql(f"DROP TABLE IF EXISTS {WORDS}")
    METADATA.drop_all(connection)
    METADATA.create_all(connection)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(
            f"CREATE VIRTUAL TABLE {WORDS} USING fts5({', '.join(COLUMNS)}, "
            "tokenize = 'unicode61 remove_diacritics 0', prefix = '2 3')"
        )
    else:
        connection.exec_driver_sql(
            f"CREATE TABLE {WORDS} (id BIGINT PRIMARY KEY REFERENCES index_versions ON DELETE CASCADE, "
            "words TSVECTOR NOT NULL)"
        )
        connection.exec_driver_sql(f"ALTER TABLE {WORDS} ALTER COLUMN words SET STATISTICS {STATISTICS}")
        connection.exec_driver_sql(f"CREATE INDEX ix_{WORDS}_words ON {WORDS} USING gin (words)")
    connection.execute(STATE.insert().values(schema=SCHEMA))


def analyze(connection: Connection) -> None:
    """Have PostgreSQL know how many rows there are of what, after many were written; SQLite plans well without."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"ANALYZE {', '.join([*METADATA.tables, WORDS])}")


def folded(text: str) -> str:
    """A text as it is compared: in small letters, not too long, and without what a database does not take."""
    return text.replace("\0", "").casefold()[:MOST_KEY]


def current(connection: Connection) -> bool:
    """Whether the tables are there, and of this version."""
    return inspect(connection).has_table(STATE.name) and connection.scalar(select(STATE.c.schema)) == SCHEMA
