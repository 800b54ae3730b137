"""What was found of adapters as rows. Each adapter is one step: whoever read it before somebody else wrote it loses."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from swapmeet_registry.index import words as texts
from swapmeet_registry.index.looking import Content, Found, Known, searched
from swapmeet_registry.index.rows import dumped, metrics_of, row_of, state_of, words_of
from swapmeet_registry.index.tables import (
    ADAPTERS,
    COLUMNS,
    FILES,
    METRICS,
    READERS,
    TAGS,
    VERSIONS,
    WORDS,
    folded,
)
from swapmeet_registry.version import Listing, Version

AT_ONCE = 500
"""Ids in one statement."""


@dataclass(frozen=True, slots=True)
class Change:
    """An adapter, what the index had of it before it was looked at, what was found then, and the head's stamp.

    With `anew` all its versions were read, and none of the rows that the index has stays.
    """

    name: str
    before: Known
    found: Found | None
    stamp: str
    anew: bool = False


def known(connection: Connection, names: Sequence[str]) -> dict[str, Known]:
    """What the index has of some adapters."""
    rows = connection.execute(
        select(ADAPTERS.c.name, ADAPTERS.c.changes, ADAPTERS.c.stamp, VERSIONS.c.digest)
        .outerjoin(VERSIONS)
        .where(ADAPTERS.c.name.in_(names))
    )
    found: dict[str, tuple[int, str, set[str]]] = {}
    for row in rows:
        digests = found.setdefault(row.name, (row.changes, row.stamp, set()))[2]
        if row.digest is not None:
            digests.add(row.digest)
    return {name: Known(count, frozenset(digests), stamp) for name, (count, stamp, digests) in found.items()}


def write(connection: Connection, changes: Sequence[Change]) -> list[str]:
    """Write what was found; gives the names that somebody else wrote meanwhile, to be looked at again.

    Nobody else writes before the transaction ends.
    """
    row = ADAPTERS.c
    names = [change.name for change in changes]
    held = select(ADAPTERS).where(row.name.in_(names))
    if (
        connection.dialect.name == "postgresql"
    ):  # whoever counts likes and downloads waits: new rows have the counts, too
        held = held.order_by(row.name.collate("C")).with_for_update()
    there = {each.name: each for each in connection.execute(held)}
    lost = {each.name for each in changes if each.before.changes != _changes(there.get(each.name))}
    good = [change for change in changes if change.name not in lost]
    new = [change for change in good if change.name not in there and change.found is not None]
    first = _next_id(connection, ADAPTERS)
    ids = {change.name: first + place for place, change in enumerate(new)}
    fresh = {"changes": 1, "likes": 0, "downloads": 0}
    if new:
        rows = [{"id": ids[each.name], "name": each.name, "stamp": each.stamp, **fresh} for each in new]
        connection.execute(insert(ADAPTERS), rows)
    old = [change for change in good if change.name in there and change.found is not None]
    if old:
        more = update(ADAPTERS).where(row.id == bindparam("of")).values(changes=row.changes + 1, stamp=bindparam("now"))
        connection.execute(more, [{"of": there[each.name].id, "now": each.stamp} for each in old])
    _delete(connection, [there[each.name].id for each in good if each.name in there and each.found is None])
    made: dict[Any, list[dict[str, Any]]] = {}
    for change in (*new, *old):
        of = ids.get(change.name) or there[change.name].id
        known = there.get(change.name)
        counted = {name: getattr(known, name) if known is not None else 0 for name in ("likes", "downloads")}
        _write_adapter(connection, of, change, counted, made)
    _insert(connection, made)
    return sorted(lost)


def _changes(row: Any) -> int:
    return 0 if row is None else int(row.changes)


def _delete(connection: Connection, adapters: list[int]) -> None:
    if adapters:
        _delete_versions(connection, adapters, None)
        connection.execute(delete(READERS).where(READERS.c.adapter.in_(adapters)))
        connection.execute(delete(ADAPTERS).where(ADAPTERS.c.id.in_(adapters)))


def _write_adapter(
    connection: Connection,
    adapter: int,
    change: Change,
    counted: dict[str, int],
    rows: dict[Any, list[dict[str, Any]]],
) -> None:
    """Change what is there of an adapter, and add to `rows` what is to be inserted."""
    found, before = change.found, change.before
    assert found is not None
    listing, versions = found.listing, searched(found.listing)
    stays = frozenset() if change.anew else before.digests & {version.digest for version in versions}
    if gone := before.digests - stays:
        _delete_versions(connection, [adapter], gone)
    if known := [version for version in versions if version.digest in stays]:
        _update_versions(connection, adapter, listing, known)
    if before.changes:
        connection.execute(delete(READERS).where(READERS.c.adapter == adapter))
    for tenant in listing.shared_with if listing.visibility == "shared" else ():
        rows.setdefault(READERS, []).append({"tenant": tenant, "adapter": adapter})
    for version in versions:
        if (content := found.contents.get(version.digest)) is not None:
            made = {"adapter": adapter, **row_of(listing, version, content), **counted, "content": content}
            rows.setdefault(VERSIONS, []).append(made)


def _update_versions(connection: Connection, adapter: int, listing: Listing, versions: list[Version]) -> None:
    """Also their numbers: a store that was restored from a copy may give a version another one."""
    row, names = VERSIONS.c, ("version", "newest", "usable", "public", "withdrawn", "shown")
    there = connection.execute(select(row.digest, *(row[name] for name in names)).where(row.adapter == adapter))
    now = {each.digest: each for each in there}
    changed = []
    for version in versions:
        old = now[version.digest]
        shown = json.loads(old.shown) | {"visibility": listing.visibility}
        state = state_of(listing, version) | {"version": version.version, "shown": dumped(shown)}
        if any(getattr(old, name) != value for name, value in state.items()):
            changed.append({"of": adapter, "which": version.digest, **state})
    if changed:
        connection.execute(
            update(VERSIONS)
            .where(row.adapter == bindparam("of"), row.digest == bindparam("which"))
            .values({name: bindparam(name) for name in names}),
            changed,
        )


def _insert(connection: Connection, rows: Mapping[Any, list[dict[str, Any]]]) -> None:
    """Insert readers, and versions with all that hangs on them."""
    if readers := rows.get(READERS):
        connection.execute(insert(READERS), readers)
    versions = rows.get(VERSIONS, [])
    if not versions:
        return
    first = _next_id(connection, VERSIONS)
    contents = [(first + place, row["name"], row.pop("content")) for place, row in enumerate(versions)]
    connection.execute(insert(VERSIONS), [{"id": first + place, **row} for place, row in enumerate(versions)])
    made = [(identity, content.manifest) for identity, _, content in contents]
    for table, children in (
        (TAGS, [{"id": i, "tag": tag} for i, manifest in made for tag in set(map(folded, manifest.tags))]),
        (METRICS, [{"id": i, "name": name, "value": v} for i, manifest in made for name, v in metrics_of(manifest)]),
        (FILES, [{"id": i, "sha256": sha} for i, manifest in made for sha in {f.sha256 for f in manifest.files}]),
    ):
        if children:
            connection.execute(insert(table), children)
    _insert_words(connection, contents)


def _insert_words(connection: Connection, contents: list[tuple[int, str, Content]]) -> None:
    if connection.dialect.name == "sqlite":
        marks = ", ".join("?" * (1 + len(COLUMNS)))
        rows = [(identity, *map(" ".join, words_of(name, content))) for identity, name, content in contents]
        statement = f"INSERT INTO {WORDS} (rowid, {', '.join(COLUMNS)}) VALUES ({marks})"  # noqa: S608 - names of ours
        connection.exec_driver_sql(statement, rows)
    else:
        rows = [(identity, texts.ts_vector(words_of(name, content))) for identity, name, content in contents]
        connection.exec_driver_sql(f"INSERT INTO {WORDS} (id, words) VALUES (%s, %s::tsvector)", rows)  # noqa: S608


def _delete_versions(connection: Connection, adapters: list[int], digests: Collection[str] | None) -> None:
    """Delete the versions with these digests, which may be more than a statement takes, or all, of some adapters."""
    there = connection.execute(select(VERSIONS.c.id, VERSIONS.c.digest).where(VERSIONS.c.adapter.in_(adapters)))
    ids = [row.id for row in there if digests is None or row.digest in digests]
    key = "rowid" if connection.dialect.name == "sqlite" else "id"
    for start in range(0, len(ids), AT_ONCE):
        some = ids[start : start + AT_ONCE]
        connection.exec_driver_sql(f"DELETE FROM {WORDS} WHERE {key} IN ({', '.join(map(str, some))})")  # noqa: S608
        for table in (TAGS, METRICS, FILES, VERSIONS):
            connection.execute(delete(table).where(table.c.id.in_(some)))


def _next_id(connection: Connection, table: Any) -> int:
    """The first id that nobody has: only one at a time writes."""
    return int(connection.scalar(select(func.coalesce(func.max(table.c.id), 0) + 1)) or 1)
