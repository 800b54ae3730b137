"""Takes away what is over: expired files and uploads, deleted files that jobs needed, bytes that never got a row."""

import itertools
import logging
import shutil
import threading
import time
from collections.abc import Iterable
from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from swapmeet.database.tables import FileRow, PartRow, UploadRow
from swapmeet.errors import PlatformError
from swapmeet.files.blobs import FILES, PARTS
from swapmeet.files.uploads import GRACE, Uploads
from swapmeet.ids import made_at
from swapmeet_registry import RegistryError

log = logging.getLogger(__name__)

EVERY_SECONDS = 60.0
ROUNDS = 60
"""Of so many rounds one is thorough: it lists the storage."""
ORPHAN_AGE = timedelta(days=1)
"""Bytes without a row that are older belong to nobody; younger ones may be about to get theirs."""
AT_ONCE = 500


class Sweeper:
    """Sweeps for all tenants. Several may run at once, and each may be killed: every step may be done twice."""

    def __init__(self, uploads: Uploads) -> None:
        self.uploads, self.files = uploads, uploads.files
        self.database, self.store, self.clock = uploads.database, uploads.store, uploads.clock

    def serve(self, stop: threading.Event, pause: float = EVERY_SECONDS) -> None:
        """Sweep every so many seconds until told to stop; a failure is logged, and tried again."""
        for number in itertools.count():
            if stop.wait(pause):
                return
            try:
                self.sweep(thoroughly=number % ROUNDS == 0)
            except (PlatformError, RegistryError, OSError) as error:
                log.warning("files could not be swept, next try in %s s: %s", pause, error)

    def sweep(self, *, thoroughly: bool = True) -> None:
        """One round over what the database says is over, and `thoroughly` over all that is stored."""
        self._expire_files()
        self._end_uploads()
        if thoroughly:
            self._remove_orphans(FILES, FileRow)
            self._remove_orphans(PARTS, PartRow)
            self._remove_spooled()

    def _expire_files(self) -> None:
        now = self.clock()

        def mark(session: Session) -> list[str]:
            expired = select(FileRow).where(FileRow.expires_at <= now, FileRow.deleted_at.is_(None))
            for row in session.scalars(expired.limit(AT_ONCE).with_for_update(skip_locked=True)):
                row.deleted_at = now
            session.flush()
            return list(session.scalars(select(FileRow.id).where(FileRow.deleted_at.is_not(None))))

        for file_id in self.database.write(mark):
            self.files.drop(file_id)

    def _end_uploads(self) -> None:
        """Expire what nobody completed, remove parts of what is over, and forget it a day later."""
        now = self.clock()

        def end(session: Session) -> tuple[list[str], list[str]]:
            late = select(UploadRow).where(UploadRow.status == "pending", UploadRow.expires_at <= now - GRACE)
            for row in session.scalars(late.limit(AT_ONCE).with_for_update(skip_locked=True)):
                row.status = "expired"
            session.flush()
            over = select(UploadRow.id).where(UploadRow.status != "pending")
            with_parts = over.where(UploadRow.id.in_(select(PartRow.upload)))
            old = over.where(UploadRow.expires_at <= now - ORPHAN_AGE)
            return list(session.scalars(with_parts)), list(session.scalars(old.limit(AT_ONCE)))

        with_parts, old = self.database.write(end)
        for upload_id in with_parts:
            self.uploads.clear(upload_id)
        if old:
            self.database.write(lambda session: session.execute(delete(UploadRow).where(UploadRow.id.in_(old))))

    def _remove_orphans(self, prefix: str, table: type[FileRow] | type[PartRow]) -> None:
        before = self.clock() - ORPHAN_AGE
        old = (key.removeprefix(prefix) for key in self.store.list(prefix))
        for some in _batches(each for each in old if (at := made_at(each)) and at <= before):
            query = select(table.id).where(table.id.in_(some))
            known = self.database.read(lambda session, query=query: set(session.scalars(query)))  # type: ignore[misc]
            for orphan in set(some) - known:
                self.store.delete(prefix + orphan)

    def _remove_spooled(self) -> None:
        """What killed processes left of files that they were receiving on this machine."""
        before = time.time() - ORPHAN_AGE.total_seconds()
        for path in self.uploads.folder.glob("*"):
            if path.lstat().st_mtime <= before:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _batches(items: Iterable[str]) -> Iterable[list[str]]:
    batch: list[str] = []
    for item in items:
        batch.append(item)
        if len(batch) == AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch
