"""Uploaded files. The bytes are in the storage, under `files/ID`; a row says whose they are."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from swapmeet.database.tables.base import Table, now


class FileRow(Table):
    """A file: `status` is `uploaded`, `processed` or `error`, and `status_details` says what is wrong."""

    __tablename__ = "files"
    __table_args__ = (Index("ix_files_tenant_created_at_id", "tenant", "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    filename: Mapped[str] = mapped_column(String(500))
    purpose: Mapped[str] = mapped_column(String(40))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime | None] = mapped_column(index=True)
    status: Mapped[str] = mapped_column(String(20), default="uploaded", index=True)
    status_details: Mapped[str | None] = mapped_column(Text)
    report: Mapped[dict[str, Any] | None]
    """What validation found: form, examples, mistakes and warnings with their lines."""
    deleted_at: Mapped[datetime | None]


class UploadRow(Table):
    """A file in parts: `status` is `pending`, `completed`, `cancelled` or `expired`."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"), index=True)
    filename: Mapped[str] = mapped_column(String(500))
    purpose: Mapped[str] = mapped_column(String(40))
    mime_type: Mapped[str] = mapped_column(String(200))
    bytes: Mapped[int] = mapped_column(BigInteger)
    file_expires_after: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime] = mapped_column(index=True)
    status: Mapped[str] = mapped_column(String(20), default="pending")
    file: Mapped[str | None] = mapped_column(String(64))
    parts: Mapped[list[Any] | None]
    """The parts that the file was made of, in order: a client that asks again is given the same answer."""


class PartRow(Table):
    """A part, whose bytes are in the storage under `parts/ID`."""

    __tablename__ = "upload_parts"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    upload: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"), index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(default=now)
