"""Honest counts: of likes one for each tenant, of downloads one for each tenant, version and day.

They are rows that stand or do not, so that what is told twice counts once: a request that is sent again, a download in
parts, two servers at the same moment. The index has a copy to sort by, changed in the same transaction and set right by
`recount`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.tables import DownloadRow, LikeRow
from swapmeet.database.tables.base import now
from swapmeet.tenancy.inserting import insert_on
from swapmeet_registry import AdapterName, Version
from swapmeet_registry.index.tables import ADAPTERS, VERSIONS

DAYS = 90
"""So many days back downloads are told one by one."""
AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Popularity:
    """How an adapter is received.

    Attributes:
        likes: tenants that like it.
        liked: whether the one that asks does.
        downloads: in all.
        days: days on which it was fetched, newest first, and how often.
    """

    likes: int
    liked: bool
    downloads: int
    days: tuple[tuple[date, int], ...] = ()


class Counters:
    """Likes and downloads, in the platform's database. Who may know of an adapter was asked before."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def like(self, name: AdapterName, tenant: str) -> None:
        """Have a tenant like an adapter; once more changes nothing."""

        def insert(session: Session) -> None:
            _locked(session, name)
            row = {"adapter": str(name), "tenant": tenant, "created_at": now()}
            made = insert_on(session, LikeRow).values(row).on_conflict_do_nothing().returning(LikeRow.tenant)
            _add(session, name, likes=int(session.scalar(made) is not None))

        self._database.write(insert)

    def unlike(self, name: AdapterName, tenant: str) -> None:
        """Take a like back; where there is none nothing happens."""

        def remove(session: Session) -> None:
            _locked(session, name)
            wanted = LikeRow.adapter == str(name), LikeRow.tenant == tenant
            gone = session.scalar(delete(LikeRow).where(*wanted).returning(LikeRow.tenant))
            _add(session, name, likes=-int(gone is not None))

        self._database.write(remove)

    def downloaded(self, version: Version, tenant: str) -> None:
        """Count that a tenant downloaded a version's weights; `gateway/downloads.py` says when that is so."""
        name = AdapterName.parse(version.name)
        row = {"digest": version.digest, "day": _today(), "tenant": tenant, "adapter": version.name}

        def insert(session: Session) -> None:
            there = select(DownloadRow.day).filter_by(digest=version.digest, day=row["day"], tenant=tenant)
            if session.scalar(there) is not None:  # as for whoever fetches it again and again: not worth a lock
                return
            _locked(session, name)
            made = insert_on(session, DownloadRow).values(row).on_conflict_do_nothing().returning(DownloadRow.tenant)
            _add(session, name, downloads=int(session.scalar(made) is not None))

        self._database.write(insert)

    def popularity(self, name: AdapterName, tenant: str, *, days: bool) -> Popularity:
        """How an adapter is received; `days` are its owner's to know."""

        def find(session: Session) -> Popularity:
            own = LikeRow.adapter == str(name)
            likes = session.scalar(select(func.count()).select_from(LikeRow).where(own)) or 0
            liked = session.get(LikeRow, (str(name), tenant)) is not None
            fetched = DownloadRow.adapter == str(name)
            downloads = session.scalar(select(func.count()).select_from(DownloadRow).where(fetched)) or 0
            return Popularity(likes, liked, downloads, _by_day(session, name) if days else ())

        return self._database.read(find)

    def recount(self, among: Sequence[str] | None = None) -> None:
        """Set the index's copies right where they are not, as after it was made anew: of all adapters, or of some."""
        for likes, table in ((True, LikeRow), (False, DownloadRow)):
            names = self._database.read(partial(_wrong, likes, table, among))
            for start in range(0, len(names), AT_ONCE):
                self._database.write(partial(_set_all, names[start : start + AT_ONCE]))


def _locked(session: Session, name: AdapterName) -> None:
    """Have whoever counts for the same adapter wait; where the index does not know it yet, `recount` sets it right."""
    session.execute(select(ADAPTERS.c.id).where(ADAPTERS.c.name == str(name)).with_for_update())


def _add(session: Session, name: AdapterName, likes: int = 0, downloads: int = 0) -> None:
    if not likes and not downloads:
        return
    adapter = select(ADAPTERS.c.id).where(ADAPTERS.c.name == str(name)).scalar_subquery()
    for table, key in ((ADAPTERS, ADAPTERS.c.id), (VERSIONS, VERSIONS.c.adapter)):
        more = {"likes": table.c.likes + likes, "downloads": table.c.downloads + downloads}
        session.execute(update(table).where(key == adapter).values(more))


def _set_all(names: Sequence[str], session: Session) -> None:
    for name in sorted(names):
        _set(session, name)


def _set(session: Session, name: str) -> None:
    _locked(session, AdapterName.parse(name))
    adapter = select(ADAPTERS.c.id).where(ADAPTERS.c.name == name).scalar_subquery()
    counts = {
        "likes": session.scalar(select(func.count()).select_from(LikeRow).where(LikeRow.adapter == name)),
        "downloads": session.scalar(select(func.count()).select_from(DownloadRow).where(DownloadRow.adapter == name)),
    }
    for table, key in ((ADAPTERS, ADAPTERS.c.id), (VERSIONS, VERSIONS.c.adapter)):
        session.execute(update(table).where(key == adapter).values(counts))


def _wrong(
    likes: bool, table: type[LikeRow] | type[DownloadRow], among: Sequence[str] | None, session: Session
) -> Sequence[str]:
    """The adapters whose copy of a count is wrong."""
    counting = select(table.adapter, func.count().label("number")).group_by(table.adapter)
    statement = select(ADAPTERS.c.name)
    if among is not None:
        counting, statement = counting.where(table.adapter.in_(among)), statement.where(ADAPTERS.c.name.in_(among))
    counted = counting.subquery()
    copy = ADAPTERS.c.likes if likes else ADAPTERS.c.downloads
    statement = statement.outerjoin(counted, counted.c.adapter == ADAPTERS.c.name)
    return list(session.scalars(statement.where(copy != func.coalesce(counted.c.number, 0))))


def _by_day(session: Session, name: AdapterName) -> tuple[tuple[date, int], ...]:
    since = _today() - timedelta(days=DAYS)
    wanted = DownloadRow.adapter == str(name), DownloadRow.day > since
    rows = select(DownloadRow.day, func.count()).where(*wanted).group_by(DownloadRow.day).order_by(DownloadRow.day)
    return tuple((day, count) for day, count in session.execute(rows))[::-1]


def _today() -> date:
    return datetime.now(UTC).date()
