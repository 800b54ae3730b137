"""Files that come in parts, of up to 8 GB: parts are kept like files until the upload is completed, or over."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from swapmeet.database.tables import FileRow, PartRow, UploadRow
from swapmeet.errors import NotFound, QuotaExceeded, RequestRefused, TooLarge
from swapmeet.files.blobs import FILES, PARTS, measure_file, spooled
from swapmeet.files.files import Files, insert_file
from swapmeet.files.joining import join, parts_in_order, require_md5, require_room
from swapmeet.files.rules import (
    LARGEST_PART,
    LARGEST_UPLOAD,
    UPLOAD_LIFE,
    file_mistakes,
    plain_name,
    refuse,
    shortened,
)
from swapmeet.ids import made_at, new_id, shown
from swapmeet.tenancy.audit import note
from swapmeet.tenancy.caller import Caller
from swapmeet.tenancy.quotas import require_storage
from swapmeet_registry.errors import Corrupt, StoreError

GRACE = timedelta(minutes=15)
"""How long an upload that was being completed when it expired may still end."""


class Uploads:
    """Uploads of all tenants. For any thread.

    Args:
        files: where completed uploads go.
        folder: on this machine, for one upload's bytes while it is completed.
    """

    def __init__(self, files: Files, folder: Path) -> None:
        self.files, self.folder = files, folder
        self.database, self.store, self.clock = files.database, files.store, files.clock

    def create(
        self, tenant: str, filename: str, purpose: str, mime_type: str, size: int, expires_after: int | None = None
    ) -> UploadRow:
        """Begin an upload of so many bytes; it is open for an hour.

        Raises:
            RequestRefused: the file could not be kept, whatever its bytes.
            QuotaExceeded: the tenant may not store so much.
        """
        filename, now = plain_name(filename), self.clock()
        mistakes = file_mistakes(filename, purpose, expires_after)
        if not 1 <= size <= LARGEST_UPLOAD:
            mistakes.append(("bytes", f"bytes is {shortened(size)}. Upload 1 to {LARGEST_UPLOAD} bytes (8 GB)."))
        if not mime_type.isprintable() or not 1 <= len(mime_type) <= 200:
            mistakes.append(("mime_type", f"mime_type is {shortened(mime_type)}. Give one such as text/jsonl."))
        refuse(mistakes)
        identity = new_id("upload_", now)

        def begin(session: Session) -> UploadRow:
            if earlier := session.get(UploadRow, identity):
                return earlier
            require_storage(session, tenant, size)
            row = UploadRow(
                id=identity,
                tenant=tenant,
                filename=filename,
                purpose=purpose,
                mime_type=mime_type,
                bytes=size,
                file_expires_after=expires_after,
                created_at=now,
                expires_at=now + UPLOAD_LIFE,
            )
            session.add(row)
            return row

        return self.database.write(begin)

    def add_part(self, tenant: str, upload_id: str, source: Path) -> PartRow:
        """Keep a part, durable on return.

        Raises:
            NotFound: there is no such upload.
            RequestRefused: it is open no more, or has parts enough.
            TooLarge: the part is over 64 MB.
        """
        sums = measure_file(source)
        if not sums.bytes:
            raise RequestRefused("The part is empty. Send its bytes in the field data.", "data")
        if sums.bytes > LARGEST_PART:
            raise TooLarge(f"The part is over the {LARGEST_PART >> 20} MB that one may have. Send smaller ones.")
        self.database.read(lambda session: self._pending(session, tenant, upload_id))
        part = PartRow(id=new_id("part_", self.clock()), upload=upload_id, bytes=sums.bytes, sha256=sums.sha256)
        self.store.put(PARTS + part.id, source, part.sha256)

        def add(session: Session) -> PartRow:
            upload = self._pending(session, tenant, upload_id, lock=True)
            if earlier := session.get(PartRow, part.id):
                return earlier
            require_room(session, upload, part.bytes)
            row = PartRow(id=part.id, upload=upload_id, bytes=part.bytes, sha256=part.sha256, created_at=self.clock())
            session.add(row)
            return row

        try:
            return self.database.write(add)
        except (NotFound, RequestRefused):  # the upload was ended meanwhile
            self.store.delete(PARTS + part.id)
            raise

    def complete(
        self,
        tenant: str,
        upload_id: str,
        part_ids: Sequence[str],
        md5: str | None = None,
        by: Caller | None = None,
    ) -> tuple[UploadRow, FileRow]:
        """Make the file of the parts, in the order given; asked again for the same parts, give the same answer.

        Raises:
            NotFound: there is no such upload.
            RequestRefused: it is open no more, or parts, their bytes or the MD5 (in hex) do not match.
            QuotaExceeded: the tenant may not store so much.
        """
        try:
            done = self._earlier(tenant, upload_id, part_ids) or self._complete(tenant, upload_id, part_ids, md5, by)
        except (Corrupt, StoreError):  # whoever completes or cancels it removes its parts, also while they are read
            if not (ended := self._earlier(tenant, upload_id, part_ids)):
                self.database.read(lambda session: self._pending(session, tenant, upload_id))
                raise
            done = ended
        self.clear(upload_id)
        return done

    def _complete(
        self, tenant: str, upload_id: str, part_ids: Sequence[str], md5: str | None, by: Caller | None
    ) -> tuple[UploadRow, FileRow]:
        def plan(session: Session) -> tuple[UploadRow, list[PartRow]]:
            upload = self._pending(session, tenant, upload_id)
            return upload, parts_in_order(session, upload, part_ids)

        upload, parts = self.database.read(plan)
        with spooled(self.folder) as whole:
            sums = join(self.store, parts, Path(whole.name))
            require_md5(sums, md5)
            row = self.files.prepare(tenant, upload.filename, upload.purpose, sums, upload.file_expires_after)
            self.store.put(FILES + row.id, Path(whole.name), row.sha256)
        try:
            done = self.database.write(lambda session: self._end(session, tenant, upload_id, part_ids, row, by))
        except (NotFound, RequestRefused, QuotaExceeded):  # ended by another meanwhile
            self.store.delete(FILES + row.id)
            raise
        if done[1].id != row.id:  # the same request, sent twice, and the other was faster
            self.store.delete(FILES + row.id)
        return done

    def cancel(self, tenant: str, upload_id: str, by: Caller | None = None) -> UploadRow:
        """End an upload without a file; again is no mistake.

        Raises:
            NotFound: there is no such upload.
            RequestRefused: it is completed or expired.
        """

        def end(session: Session) -> UploadRow:
            row = self._of(session, tenant, upload_id, lock=True)
            if row.status != "cancelled":
                self._require_pending(row)
                row.status = "cancelled"
                note(session, by, "upload.cancel", row.id)
            return row

        row = self.database.write(end)
        self.clear(upload_id)
        return row

    def clear(self, upload_id: str) -> None:
        """Remove the parts of an upload that is over: bytes first, then rows."""
        query = select(PartRow.id).where(PartRow.upload == upload_id)
        parts = self.database.read(lambda session: list(session.scalars(query)))
        for part in parts:
            self.store.delete(PARTS + part)

        if parts:  # one statement: another may remove them at the same time
            self.database.write(lambda session: session.execute(delete(PartRow).where(PartRow.id.in_(parts))))

    def _earlier(self, tenant: str, upload_id: str, part_ids: Sequence[str]) -> tuple[UploadRow, FileRow] | None:
        return self.database.read(lambda session: self._completed(session, tenant, upload_id, part_ids))

    def _end(
        self,
        session: Session,
        tenant: str,
        upload_id: str,
        part_ids: Sequence[str],
        row: FileRow,
        by: Caller | None,
    ) -> tuple[UploadRow, FileRow]:
        """The one transaction that makes an upload a file."""
        upload = self._of(session, tenant, upload_id, lock=True)
        if earlier := self._completed(session, tenant, upload_id, part_ids):
            return earlier
        self._require_pending(upload, grace=GRACE)
        upload.status, upload.file, upload.parts = "completed", row.id, list(part_ids)
        session.flush()  # it no longer counts against the quota beside its file
        return upload, insert_file(session, row, by)

    def _completed(
        self, session: Session, tenant: str, upload_id: str, part_ids: Sequence[str]
    ) -> tuple[UploadRow, FileRow] | None:
        upload = self._of(session, tenant, upload_id)
        if upload.status != "completed" or upload.parts != list(part_ids):
            return None
        file = session.get(FileRow, upload.file)
        if file is None or file.deleted_at is not None:
            raise RequestRefused(f"{upload_id} is completed, and its file was deleted. Begin another upload.")
        return upload, file

    def _pending(self, session: Session, tenant: str, upload_id: str, *, lock: bool = False) -> UploadRow:
        row = self._of(session, tenant, upload_id, lock=lock)
        self._require_pending(row)
        return row

    def _require_pending(self, row: UploadRow, grace: timedelta = timedelta(0)) -> None:
        late = row.status == "pending" and row.expires_at + grace <= self.clock()
        status = "expired" if late else row.status
        if status != "pending":
            raise RequestRefused(f"{row.id} is {status}, and takes nothing more. Begin another upload.")

    def _of(self, session: Session, tenant: str, upload_id: str, *, lock: bool = False) -> UploadRow:
        row = session.get(UploadRow, upload_id, with_for_update=lock) if made_at(upload_id) else None
        if row is None or row.tenant != tenant:
            raise NotFound(f"There is no upload {shown(upload_id)}. Begin one: POST /v1/uploads.")
        return row
