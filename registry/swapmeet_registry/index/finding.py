"""Questions as SQL."""

import json
from collections.abc import Iterator, Sequence
from heapq import nlargest
from typing import Any

from sqlalchemy import Connection, Row, Select, case, cast, func, literal, literal_column, or_, select, tuple_
from sqlalchemy.dialects.postgresql import TSQUERY
from sqlalchemy.types import Double, Integer

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

FEW = 500
"""Results up to which words are weighed; of more, which a word tells little of, the most fetched come first."""
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
    passing = (*_filters(query), readable(reader))
    rows = _few(connection, query, asked, passing) if asked else None
    if rows is None:
        rows = _walked(connection, query, asked, passing)
    shown = rows[: query.limit]
    more = len(rows) > len(shown)
    last = query.cursor(shown[-1].key, shown[-1].created_at, shown[-1].id) if more else None
    return Page(tuple(map(hit, shown)), last)


def by_file(connection: Connection, sha256: str, reader: str | None, most: int) -> tuple[Hit, ...]:
    """The versions that a file is part of, newest first, withdrawn ones too."""
    falling = (VERSIONS.c.created_at.desc(), VERSIONS.c.id.desc())
    having = select(VERSIONS.c.id).join(FILES, FILES.c.id == VERSIONS.c.id)
    first = having.where(FILES.c.sha256 == sha256, readable(reader)).order_by(*falling).limit(most)
    return tuple(map(hit, connection.execute(select(VERSIONS).where(VERSIONS.c.id.in_(first)).order_by(*falling))))


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


def _few(connection: Connection, query: Query, asked: list[str], passing: Sequence[Any]) -> Sequence[Row[Any]] | None:
    """What has the words and passes, best first; None where it is more than `FEW`."""
    matches, identity, score = _matches(connection, asked)
    place, relevance = query.place, query.sort == "relevance"
    if relevance and place is not None and isinstance(place[0], int):
        return None  # the page before was of more
    key = score if relevance else _column(query)
    statement = select(key.label("key"), VERSIONS.c.created_at, VERSIONS.c.id)
    statement = statement.select_from(VERSIONS.join(WORD_TABLE, VERSIONS.c.id == identity)).where(matches, *passing)
    if place is None or not relevance:
        statement = statement.limit(FEW + 1)
    found = [tuple(row) for row in connection.execute(statement)]
    if len(found) > FEW and (place is None or not relevance):
        return None
    behind = (each for each in found if place is None or each < place)
    best = {identity: key for key, _, identity in nlargest(query.limit + 1, behind)}
    given = case(best, value=VERSIONS.c.id).label("key") if best else literal(0).label("key")
    rows = {row.id: row for row in connection.execute(select(VERSIONS, given).where(VERSIONS.c.id.in_(best)))}
    return [rows[each] for each in best if each in rows]


def _walked(connection: Connection, query: Query, asked: list[str], passing: Sequence[Any]) -> Sequence[Row[Any]]:
    """What passes, and has the words, in the order of an index: where that is much the first are found soon."""
    key = _column(query)
    order = (key, VERSIONS.c.created_at, VERSIONS.c.id)
    first = select(VERSIONS.c.id).where(*passing)  # of ids, for which an index alone may do
    if asked:
        first = first.where(_has(connection, asked))
    if (place := query.place) is not None:
        first = first.where(tuple_(*order) < tuple_(*map(literal, place)))
    falling = [each.desc() for each in order]
    first = first.order_by(*falling).limit(query.limit + 1)
    statement = select(VERSIONS, key.label("key")).where(VERSIONS.c.id.in_(first)).order_by(*falling)
    return connection.execute(statement).all()


def _column(query: Query) -> Any:
    named = {"date": VERSIONS.c.created_at, "likes": VERSIONS.c.likes}
    return named.get(query.sort, VERSIONS.c.downloads)


def _has(connection: Connection, asked: list[str]) -> Any:
    """Whether a row has the words. PostgreSQL is kept from collecting all that have them before it sorts."""
    matches, identity, _ = _matches(connection, asked)
    if connection.dialect.name == "sqlite":
        return VERSIONS.c.id.in_(select(identity).select_from(WORD_TABLE).where(matches))
    return select(matches).where(identity == VERSIONS.c.id).scalar_subquery()


def _matches(connection: Connection, asked: list[str]) -> tuple[Any, Any, Any]:
    """The condition that the words are there, the id of the row that has them, and how well they fit."""
    if connection.dialect.name == "sqlite":
        words: Any = literal_column(WORDS)
        score: Any = -func.bm25(words, *(literal_column(str(weight)) for weight in WEIGHTS))
        # The sign keeps SQLite from looking up the words of one row after the other.
        return words.op("MATCH")(texts.fts5_query(asked)), literal_column(f"+{WORDS}.rowid", Integer), score
    wanted = cast(texts.ts_query(asked), TSQUERY)
    weights = ",".join(str(weight / WEIGHTS[0]) for weight in reversed(WEIGHTS))
    score = cast(func.ts_rank(literal_column(f"'{{{weights}}}'::real[]"), WORD_TABLE.c.words, wanted), Double)
    return WORD_TABLE.c.words.op("@@")(wanted), WORD_TABLE.c.id, score


def _filters(query: Query) -> Iterator[Any]:
    """What a row must be to pass."""
    row = VERSIONS.c
    yield (row.usable if query.versions else row.newest) == 1
    if query.base is not None:
        digest = query.base.startswith("sha256:")
        yield row.weights == query.base if digest else row.base_key == folded(query.base)
    for column, value in ((row.task_key, query.task), (row.license_key, query.license)):
        if value is not None:
            yield column == folded(value)
    if query.owner is not None:
        yield row.tenant == query.owner
    least = {row.rank: query.rank_min, row.size: query.size_min}
    most = {row.rank: query.rank_max, row.size: query.size_max}
    yield from (column >= value for column, value in least.items() if value is not None)
    yield from (column <= value for column, value in most.items() if value is not None)
    for tag in query.tags:
        yield row.id.in_(select(TAGS.c.id).where(TAGS.c.tag == folded(tag)))
    few = query.words.strip() or query.base is not None  # rows are left: looked up one by one
    for each in query.ranges:
        yield _measured(each).where(METRICS.c.id == row.id).exists() if few else row.id.in_(_measured(each))


def _measured(metric: MetricRange) -> Select[Any]:
    return select(METRICS.c.id).where(
        METRICS.c.name == metric.name[:MOST_KEY], RELATIONS[metric.relation](metric.value)
    )
