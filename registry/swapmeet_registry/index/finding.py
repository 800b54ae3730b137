"""Questions as SQL."""

import json
from typing import Any

from sqlalchemy import Connection, Row, Select, cast, func, literal, literal_column, or_, select, tuple_
from sqlalchemy.dialects.postgresql import TSQUERY
from sqlalchemy.types import Double

from swapmeet_registry.index import words as texts
from swapmeet_registry.index.query import Hit, MetricRange, Page, Query
from swapmeet_registry.index.tables import (
    ADAPTERS,
    FILES,
    METRICS,
    MOST_KEY,
    READERS,
    TAGS,
    VERSIONS,
    WEIGHTS,
    WORD_TABLE,
    WORDS,
    folded,
)

RELATIONS = {
    "<": METRICS.c.value.__lt__,
    "<=": METRICS.c.value.__le__,
    ">": METRICS.c.value.__gt__,
    ">=": METRICS.c.value.__ge__,
    "=": METRICS.c.value.__eq__,
}


def search(connection: Connection, query: Query, reader: str | None) -> Page:
    """A page of what a reader may know of; None may know of all."""
    asked = texts.asked(query.words)
    if query.words.strip() and not asked:
        return Page(())  # signs only, which nothing is found by
    key, statement = _sorted(connection, query, asked)
    statement = _filtered(statement, query).where(readable(reader))
    order = (key, VERSIONS.c.created_at, VERSIONS.c.id)
    if (place := query.place) is not None:
        statement = statement.where(tuple_(*order) < tuple_(*map(literal, place)))
    rows = connection.execute(statement.order_by(*(each.desc() for each in order)).limit(query.limit + 1)).all()
    shown = rows[: query.limit]
    more = len(rows) > len(shown)
    last = query.cursor(shown[-1].key, shown[-1].created_at, shown[-1].id) if more else None
    return Page(tuple(map(hit, shown)), last)


def by_file(connection: Connection, sha256: str, reader: str | None, most: int) -> tuple[Hit, ...]:
    """The versions that a file is part of, newest first, withdrawn ones too."""
    having = select(FILES.c.id).where(FILES.c.sha256 == sha256)
    statement = select(VERSIONS).where(VERSIONS.c.id.in_(having), readable(reader))
    newest = statement.order_by(VERSIONS.c.created_at.desc(), VERSIONS.c.id.desc()).limit(most)
    return tuple(map(hit, connection.execute(newest)))


def newer(connection: Connection, name: str, version: int) -> Hit | None:
    """The newest usable version of an adapter, if it is newer than this one."""
    wanted = VERSIONS.c.newest == 1, VERSIONS.c.version > version, ADAPTERS.c.name == name
    row = connection.execute(select(VERSIONS).join(ADAPTERS).where(*wanted)).first()
    return None if row is None else hit(row)


def readable(reader: str | None) -> Any:
    """Whether a row is a reader's own, public, or shared with it."""
    if reader is None:
        return literal(True)
    shared = select(READERS.c.adapter).where(READERS.c.tenant == reader)
    return or_(VERSIONS.c.public == 1, VERSIONS.c.tenant == reader, VERSIONS.c.adapter.in_(shared))


def hit(row: Row[Any]) -> Hit:
    """A row as a result."""
    shown = json.loads(row.shown)
    shown["tags"] = tuple(shown["tags"])
    if isinstance(shown["targets"], list):
        shown["targets"] = tuple(shown["targets"])
    same = ("name", "version", "digest", "created_at", "weights", "rank", "size", "parameters")
    return Hit(
        **{name: getattr(row, name) for name in same},
        **shown,
        likes=row.likes,
        downloads=row.downloads,
        withdrawn=row.withdrawn,
    )


def _sorted(connection: Connection, query: Query, asked: list[str]) -> tuple[Any, Select[Any]]:
    """What to sort by, and the rows with it as `key`, of those with the words."""
    named = {"date": VERSIONS.c.created_at, "likes": VERSIONS.c.likes, "downloads": VERSIONS.c.downloads}
    key: Any = named.get(query.sort, VERSIONS.c.downloads)
    if not asked:
        return key, select(VERSIONS, key.label("key"))
    matches, identity, score = _matches(connection, asked)
    if query.sort != "relevance":
        return key, select(VERSIONS, key.label("key")).where(VERSIONS.c.id.in_(select(identity).where(matches)))
    found = select(identity.label("id"), score.label("score")).where(matches).cte("found").prefix_with("MATERIALIZED")
    statement = select(VERSIONS, found.c.score.label("key")).join(found, found.c.id == VERSIONS.c.id)
    return found.c.score, statement


def _matches(connection: Connection, asked: list[str]) -> tuple[Any, Any, Any]:
    """The condition that the words are there, the id of the row that has them, and how well they fit."""
    if connection.dialect.name == "sqlite":
        words: Any = literal_column(WORDS)
        score: Any = -func.bm25(words, *(literal_column(str(weight)) for weight in WEIGHTS))
        return words.op("MATCH")(texts.fts5_query(asked)), WORD_TABLE.c.rowid, score
    wanted = cast(texts.ts_query(asked), TSQUERY)
    weights = ",".join(str(weight / WEIGHTS[0]) for weight in reversed(WEIGHTS))
    score = cast(func.ts_rank(literal_column(f"'{{{weights}}}'::real[]"), WORD_TABLE.c.words, wanted), Double)
    return WORD_TABLE.c.words.op("@@")(wanted), WORD_TABLE.c.id, score


def _filtered(statement: Select[Any], query: Query) -> Select[Any]:
    """The rows that pass the filters."""
    row = VERSIONS.c
    statement = statement.where((row.usable if query.versions else row.newest) == 1)
    if query.base is not None:
        digest = query.base.startswith("sha256:")
        statement = statement.where(row.weights == query.base if digest else row.base_key == folded(query.base))
    equal = {row.task_key: query.task, row.license_key: query.license}
    for column, value in equal.items():
        if value is not None:
            statement = statement.where(column == folded(value))
    if query.owner is not None:
        statement = statement.where(row.tenant == query.owner)
    least = {row.rank: query.rank_min, row.size: query.size_min}
    most = {row.rank: query.rank_max, row.size: query.size_max}
    statement = statement.where(*(column >= value for column, value in least.items() if value is not None))
    statement = statement.where(*(column <= value for column, value in most.items() if value is not None))
    for tag in query.tags:
        statement = statement.where(row.id.in_(select(TAGS.c.id).where(TAGS.c.tag == folded(tag))))
    if query.words.strip() or query.base is not None:  # few rows are left: looked up one by one
        return statement.where(*(_measured(each).where(METRICS.c.id == row.id).exists() for each in query.ranges))
    return statement.where(*(row.id.in_(_measured(each)) for each in query.ranges))


def _measured(metric: MetricRange) -> Select[Any]:
    return select(METRICS.c.id).where(
        METRICS.c.name == metric.name[:MOST_KEY], RELATIONS[metric.relation](metric.value)
    )
