"""The index of one registry, in one database."""

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from time import time
from typing import TYPE_CHECKING

from sqlalchemy import Engine, select

from swapmeet_registry.errors import Conflict, Corrupt
from swapmeet_registry.index import finding, writing
from swapmeet_registry.index.engines import make_engine, reading
from swapmeet_registry.index.engines import writing as writing_to
from swapmeet_registry.index.looking import Found, Known, look, stamps
from swapmeet_registry.index.query import Hit, Page, Query
from swapmeet_registry.index.tables import ADAPTERS, analyze, current, recreate
from swapmeet_registry.index.writing import Change

if TYPE_CHECKING:
    from swapmeet_registry.registry import Registry

log = logging.getLogger(__name__)

AT_ONCE = 200
"""Adapters that are looked at, and written, together."""
READERS = 16
"""Threads that look: a remote store answers each only after a while."""
ATTEMPTS = 20
MANY = 1000
"""Adapters that were written, after which a database looks at its tables again."""
YOUNG_SECONDS = 5.0
"""A head that was written just now may be written again within the same tick of its store's clock."""
MOST_BY_FILE = 200
"""As on a page: the configuration file of one is that of thousands."""


class Index:
    """What is searched. Picklable; several threads, processes and servers may use and write one at once.

    A writer reads an adapter's head after it noted how often the index's row of it was written, and writes only if
    nobody did so since: so an older state never replaces a newer one.

    Args:
        database: its URL, `sqlite:///FILE` or `postgresql://…`; or an engine, whose SQLite connections must begin
            transactions as `engines` has them.
    """

    def __init__(self, database: str | Engine) -> None:
        self._engine = make_engine(database) if isinstance(database, str) else database

    def __reduce__(self) -> tuple[type["Index"], tuple[str]]:
        return Index, (self._engine.url.render_as_string(hide_password=False),)

    def close(self) -> None:
        """Let go of its connections; it may be used again."""
        self._engine.dispose()

    def prepare(self, *, anew: bool = False) -> None:
        """Make the tables, empty, if there are none of this version; with `anew` in any case.

        Raises:
            IndexFailed: the database can not be used.
        """
        with writing_to(self._engine) as connection:
            if anew or not current(connection):
                recreate(connection)

    def rebuild(self, registry: "Registry") -> int:
        """Make every row anew from the registry, also where nothing seems to have changed.

        Adapter by adapter, each in one step: all are found meanwhile, and also if it is ended half-way. Gives the
        number of adapters.

        Raises:
            IndexFailed: the database can not be used.
            StoreError: the store failed; what was made anew stays.
        """
        self.prepare()
        return self._refresh(registry, anew=True)

    def refresh(self, registry: "Registry") -> int:
        """Take over whatever changed in the registry since; gives the number of adapters that were looked at.

        Raises:
            IndexFailed: the database can not be used.
            StoreError: the store failed; what was taken over stays.
        """
        return self._refresh(registry, anew=False)

    def _refresh(self, registry: "Registry", anew: bool) -> int:
        with reading(self._engine) as connection:
            there = {row.name: row.stamp for row in connection.execute(select(ADAPTERS.c.name, ADAPTERS.c.stamp))}
        count = 0
        with ThreadPoolExecutor(READERS if _remote(registry) else 1) as pool:
            for some in _portions(_changed(registry, there, anew)):
                self._take(registry, dict(some), pool, anew)
                count += len(some)
            for some in _portions((name, "") for name in list(there)):  # what no head was found of
                self._take(registry, dict(some), pool, anew)
                count += len(some)
        if count >= MANY:
            with writing_to(self._engine) as connection:
                analyze(connection)
        return count

    def update(self, registry: "Registry", name: str) -> None:
        """Take over one adapter, after whatever happened to it; once more does nothing.

        Raises:
            Conflict: others kept writing it.
            Corrupt: its head is damaged.
            IndexFailed: the database can not be used.
            StoreError: the store failed.
        """
        self._update(registry, name, anew=False)

    def search(self, query: Query, reader: str | None = None) -> Page:
        """What a tenant may know of: its own, what is shared with it, what is public. None may know of all.

        Raises:
            IndexFailed: the database can not be used.
        """
        with reading(self._engine) as connection:
            return finding.search(connection, query, reader)

    def by_file(self, sha256: str, reader: str | None = None) -> tuple[Hit, ...]:
        """The versions that a file with this hex SHA-256 is part of, newest first; withdrawn ones say so."""
        with reading(self._engine) as connection:
            return finding.by_file(connection, sha256, reader, MOST_BY_FILE)

    def on_base(self, weights: str, reader: str | None = None, after: str | None = None, limit: int = 20) -> Page:
        """The adapters that sit on a base, by its weights digest, newest first."""
        return self.search(Query(base=weights, sort="date", after=after, limit=limit), reader)

    def newer(self, name: str, version: int) -> Hit | None:
        """The newest usable version of an adapter, if it is newer than this one; who may know of it is not asked."""
        with reading(self._engine) as connection:
            return finding.newer(connection, name, version)

    def _known(self, names: list[str]) -> dict[str, Known]:
        with reading(self._engine) as connection:
            return writing.known(connection, names)

    def _take(self, registry: "Registry", stamps: dict[str, str], pool: ThreadPoolExecutor, anew: bool) -> None:
        known = self._known(list(stamps))
        before = {name: known.get(name, Known()) for name in stamps}
        has = (frozenset() if anew else before[name].digests for name in stamps)
        found = pool.map(partial(_looked, registry), stamps, has)
        changes = [
            Change(name, before[name], each, stamp if each is None or each.whole else "", anew)
            for (name, stamp), each in zip(stamps.items(), found, strict=True)
            if not isinstance(each, Corrupt)
        ]
        with writing_to(self._engine) as connection:
            lost = writing.write(connection, changes)
        for name in lost:
            try:
                self._update(registry, name, anew)
            except (Corrupt, Conflict) as error:  # the others are to be found nevertheless
                log.warning("%s stays as it is in the index: %s", name, error)

    def _update(self, registry: "Registry", name: str, anew: bool) -> None:
        for _ in range(ATTEMPTS):
            before = self._known([name]).get(name, Known())
            found = look(registry, name, frozenset() if anew else before.digests)
            with writing_to(self._engine) as connection:
                if not writing.write(connection, [Change(name, before, found, "", anew)]):
                    return
        raise Conflict(f"{name} is being changed by many others at once. The next refresh of the index takes it over.")


def _changed(registry: "Registry", there: dict[str, str], anew: bool) -> Iterator[tuple[str, str]]:
    """The adapters whose heads are others than the index knows, with their stamps; those seen are taken out of it.

    With `anew` it is all of them.
    """
    for name, stamp, written_at in stamps(registry):
        known = there.pop(name, None)
        if anew or known is None or not stamp or known != stamp:
            young = written_at is not None and abs(time() - written_at) < YOUNG_SECONDS
            yield name, "" if young else stamp


def _looked(registry: "Registry", name: str, known: Iterable[str]) -> Found | Corrupt | None:
    """What is found of an adapter. One whose head is damaged does not keep the others from being found."""
    try:
        return look(registry, name, frozenset(known))
    except Corrupt as error:
        log.warning("%s stays as it is in the index: %s", name, error)
        return error


def _portions(names: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    source = iter(names)
    while some := list(islice(source, AT_ONCE)):
        yield some


def _remote(registry: "Registry") -> bool:
    """Whether an answer takes time that others can be asked in."""
    return not registry.backend.url.startswith("file:")
