"""Uploaded files: a row says whose they are, the storage has the bytes.

The bytes are written first and the row next, so a row's bytes are always there; bytes that never got their row
are swept up (`swapmeet.files.sweeping`). A deletion marks the row, takes the bytes away, and then the row; a job that
is not finished keeps the bytes of its files until it is.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import ColumnElement, and_, not_, or_, select
from sqlalchemy.orm import Session, defer

from swapmeet.database import Database
from swapmeet.database.tables import FileRow, JobRow
from swapmeet.errors import NotFound, QuotaExceeded, RequestRefused
from swapmeet.files.blobs import FILES, Sums, measure_file, read_blob, write_beside
from swapmeet.files.rules import FINE_TUNE, file_mistakes, plain_name, refuse
from swapmeet.ids import made_at, new_id, shown
from swapmeet.jobs.examples import remove_examples
from swapmeet.tenancy.audit import note
from swapmeet.tenancy.caller import Caller
from swapmeet.tenancy.quotas import require_storage
from swapmeet_registry.stores.protocol import Store

Order = Literal["asc", "desc"]
FINISHED = ("succeeded", "failed", "cancelled")
"""States in which a job needs its files no more."""


def present() -> datetime:
    """The present moment."""
    return datetime.now(UTC)


class Files:
    """Files of all tenants, over rows in a database and bytes in a store. For any thread.

    Args:
        database: has the rows.
        store: has the bytes, under `files/ID`.
        clock: gives the present moment, in UTC.
    """

    def __init__(self, database: Database, store: Store, clock: Callable[[], datetime] = present) -> None:
        self.database, self.store, self.clock = database, store, clock

    def create(
        self,
        tenant: str,
        filename: str,
        purpose: str,
        source: Path,
        expires_after: int | None = None,
        *,
        file_id: str | None = None,
        by: Caller | None = None,
    ) -> FileRow:
        """Keep a file, durable on return.

        Args:
            tenant: whose it is.
            filename: its name; folders before it are dropped.
            purpose: one of `PURPOSES`, or `fine-tune-results`.
            source: its bytes, in a file that nobody changes.
            expires_after: seconds until it is deleted by itself.
            file_id: chosen by a caller who may have to do this twice; the second time changes nothing.
            by: who makes it; None for the server itself.

        Raises:
            RequestRefused: name, purpose or life time can not be used.
            QuotaExceeded: the tenant may not store so much.
        """
        filename = plain_name(filename)
        refuse(file_mistakes(filename, purpose, expires_after))
        if file_id and (earlier := self.database.read(lambda session: session.get(FileRow, file_id))):
            return earlier
        row = self.prepare(tenant, filename, purpose, measure_file(source), expires_after, file_id)
        self.database.read(lambda session: require_storage(session, tenant, row.bytes))  # before the bytes are written
        self.store.put(FILES + row.id, source, row.sha256)
        try:
            return self.database.write(lambda session: insert_file(session, row, by))
        except QuotaExceeded:  # another file was faster; the transaction did not take place
            self.store.delete(FILES + row.id)
            raise

    def prepare(
        self,
        tenant: str,
        filename: str,
        purpose: str,
        sums: Sums,
        expires_after: int | None,
        file_id: str | None = None,
    ) -> FileRow:
        """The row of a new file, not yet in the database; only files to train on are still to be checked."""
        now = self.clock()
        identity = file_id or new_id("file-", now)
        return FileRow(
            id=identity,
            tenant=tenant,
            filename=filename,
            purpose=purpose,
            bytes=sums.bytes,
            sha256=sums.sha256,
            created_at=made_at(identity) or now,
            expires_at=None if expires_after is None else now + timedelta(seconds=expires_after),
            status="uploaded" if purpose == FINE_TUNE else "processed",
        )

    def get(self, tenant: str, file_id: str) -> FileRow:
        """A tenant's file.

        Raises:
            NotFound: it has none of this id.
        """
        return self.database.read(lambda session: self._of(session, tenant, file_id))

    def page(
        self, tenant: str, after: str | None = None, limit: int = 100, order: Order = "desc", purpose: str | None = None
    ) -> tuple[list[FileRow], bool]:
        """Some of a tenant's files by age, and whether there are more; `after` is an id, which may be gone by now.

        The rows come without their `report`, which may be long.

        Raises:
            RequestRefused: `after` is no file's id.
        """
        now = self.clock()
        wanted: list[ColumnElement[bool]] = [
            FileRow.tenant == tenant,
            FileRow.deleted_at.is_(None),
            or_(FileRow.expires_at.is_(None), FileRow.expires_at > now),
        ]
        if purpose is not None:
            wanted.append(FileRow.purpose == purpose)
        if after is not None:
            wanted.append(_beyond(after, order))
        columns = (FileRow.created_at, FileRow.id)
        ordered = [each.desc() if order == "desc" else each.asc() for each in columns]
        query = select(FileRow).options(defer(FileRow.report)).where(*wanted).order_by(*ordered).limit(limit + 1)
        rows = self.database.read(lambda session: list(session.scalars(query)))
        return rows[:limit], len(rows) > limit

    def delete(self, tenant: str, file_id: str, by: Caller | None = None) -> None:
        """Take a file away from its tenant at once; unfinished jobs that were given it keep its bytes until they end.

        Raises:
            NotFound: there is none of this id.
        """

        def mark(session: Session) -> None:
            self._of(session, tenant, file_id, lock=True).deleted_at = self.clock()
            note(session, by, "file.delete", file_id)

        self.database.write(mark)
        self.drop(file_id)

    def drop(self, file_id: str) -> bool:
        """Remove a deleted file's bytes and its row, unless a job still needs them; whether that was done.

        With it goes what the storage keeps of its prompts: the examples of the runs that it was held out for.
        """
        if self.database.read(lambda session: _is_needed(session, file_id)):
            return False
        self.store.delete(FILES + file_id)
        remove_examples(self.database, self.store, file_id)

        def remove(session: Session) -> None:
            row = session.get(FileRow, file_id, with_for_update=True)
            if row is not None:
                session.delete(row)

        self.database.write(remove)
        return True

    def read(self, row: FileRow) -> Iterator[bytes]:
        """A file's bytes in pieces, of which the last comes only if all are as they were uploaded.

        Raises:
            Corrupt: they are gone, or others.
        """
        return read_blob(self.store, FILES + row.id, row.sha256)

    def fetch(self, file_id: str, folder: Path) -> Path:
        """A file's bytes as a file in a folder, for a job: of any tenant, also when it was deleted meanwhile.

        Raises:
            NotFound: there is none of this id any more.
        """
        row = self.database.read(lambda session: session.get(FileRow, file_id))
        if row is None:
            raise _missing(file_id)
        target = folder / (file_id + Path(row.filename).suffix.lower())
        if not target.exists():
            write_beside(target, self.read(row))
        return target

    def judge(self, file_id: str, *, ok: bool, details: str | None, report: dict[str, Any]) -> None:
        """Note what checking a file found; only the first to say counts."""

        def note(session: Session) -> None:
            row = session.get(FileRow, file_id, with_for_update=True)
            if row is not None and row.status == "uploaded":
                row.status, row.status_details, row.report = "processed" if ok else "error", details, report

        self.database.write(note)

    def _of(self, session: Session, tenant: str, file_id: str, *, lock: bool = False) -> FileRow:
        """A tenant's file; the database is not asked for what can be no id, which may hold characters it refuses."""
        row = session.get(FileRow, file_id, with_for_update=lock) if made_at(file_id) else None
        if row is None or row.tenant != tenant or self._is_gone(row):
            raise _missing(file_id)
        return row

    def _is_gone(self, row: FileRow) -> bool:
        return row.deleted_at is not None or (row.expires_at is not None and row.expires_at <= self.clock())


def insert_file(session: Session, row: FileRow, by: Caller | None = None) -> FileRow:
    """Add a file's row, if its tenant has room; `Database.write` may call this twice.

    Raises:
        QuotaExceeded: it has not.
    """
    earlier = session.get(FileRow, row.id)
    if earlier is not None:
        return earlier
    require_storage(session, row.tenant, row.bytes)
    copy = FileRow(**{column.key: getattr(row, column.key) for column in FileRow.__table__.columns})
    session.add(copy)
    note(session, by, "file.create", row.id, detail=f"{row.bytes} bytes for {row.purpose}")
    return copy


def _is_needed(session: Session, file_id: str) -> bool:
    uses = or_(JobRow.training_file == file_id, JobRow.validation_file == file_id)
    return session.scalar(select(JobRow.id).where(uses, JobRow.state.not_in(FINISHED)).limit(1)) is not None


def _beyond(after: str, order: Order) -> ColumnElement[bool]:
    """What comes after a file in the order of the pages. Its id says where that is, so it may be gone."""
    moment = made_at(after)
    if moment is None:
        raise RequestRefused("after is no file's id. Give the last id of the page before.", "after")
    older = or_(FileRow.created_at < moment, and_(FileRow.created_at == moment, FileRow.id < after))
    return older if order == "desc" else and_(not_(older), FileRow.id != after)


def _missing(file_id: str) -> NotFound:
    return NotFound(f"There is no file {shown(file_id)}. `client.files.list()` shows yours.")
