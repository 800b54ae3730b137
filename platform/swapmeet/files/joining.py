"""From parts to the file that was announced: which ones, in which order, and that they are all of it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from swapmeet.database.tables import PartRow, UploadRow
from swapmeet.errors import RequestRefused
from swapmeet.files.blobs import PARTS, Sums, measure, read_blob
from swapmeet.files.rules import LARGEST_PART, shortened
from swapmeet_registry.stores.files import os_errors
from swapmeet_registry.stores.protocol import Store

MOST_PARTS = 10_000


def require_room(session: Session, upload: UploadRow, more: int) -> None:
    """Nothing, if an upload may have another part: one whose answer was lost is sent again, but not without end.

    Raises:
        RequestRefused: it has enough.
    """
    query = select(func.count(), func.coalesce(func.sum(PartRow.bytes), 0)).where(PartRow.upload == upload.id)
    count, size = session.execute(query).one()
    if count >= MOST_PARTS or size + more > 2 * upload.bytes + LARGEST_PART:
        raise RequestRefused(
            f"{upload.id} has {count} parts of {size} bytes, and {upload.bytes} bytes were announced. "
            "Complete or cancel it, or begin another in larger parts."
        )


def parts_in_order(session: Session, upload: UploadRow, part_ids: Sequence[str]) -> list[PartRow]:
    """An upload's parts, as they are named.

    Raises:
        RequestRefused: they can not make the file that was announced.
    """
    rows = {row.id: row for row in session.scalars(select(PartRow).where(PartRow.upload == upload.id))}
    if unknown := [part for part in part_ids if part not in rows]:
        raise RequestRefused(f"part_ids names {shortened(unknown[0])}, which is no part of this upload.", "part_ids")
    if len(set(part_ids)) < len(part_ids):
        raise RequestRefused("part_ids names a part twice. Name each once, in the order of the file.", "part_ids")
    parts = [rows[part] for part in part_ids]
    size = sum(part.bytes for part in parts)
    if size != upload.bytes:
        raise RequestRefused(
            f"The parts have {size} bytes, and {upload.bytes} were announced. Name all parts, or send what lacks.",
            "part_ids",
        )
    return parts


def join(store: Store, parts: Sequence[PartRow], target: Path) -> Sums:
    """Write the parts one after the other into a file, which is there already, in memory of a few pieces.

    Raises:
        Corrupt: a part is gone, or is not what was uploaded.
    """
    with os_errors(f"write {target}"):
        return measure(_written(target, (chunk for part in parts for chunk in _part(store, part))))


def require_md5(sums: Sums, md5: str | None) -> None:
    """Nothing, if a file has the MD5, in hex, that its sender expects.

    Raises:
        RequestRefused: it has another.
    """
    if md5 is not None and md5.strip().lower() != sums.md5:
        raise RequestRefused(
            f"md5 is {shortened(md5)}, and the parts in this order have {sums.md5}. Correct the order, or send again.",
            "md5",
        )


def _part(store: Store, part: PartRow) -> Iterator[bytes]:
    return read_blob(store, PARTS + part.id, part.sha256)


def _written(target: Path, chunks: Iterator[bytes]) -> Iterator[bytes]:
    with target.open("wb") as stream:
        for chunk in chunks:
            stream.write(chunk)
            yield chunk
