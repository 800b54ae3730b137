"""Who likes which adapter, and who fetched which version on which day: what no registry knows."""

from datetime import date, datetime

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from swapmeet.database.tables.base import Table, now


class LikeRow(Table):
    """A tenant likes an adapter: once, whichever of its keys says so."""

    __tablename__ = "adapter_likes"

    adapter: Mapped[str] = mapped_column(String(127), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(default=now)


class DownloadRow(Table):
    """A tenant fetched a version on a day (UTC), however often."""

    __tablename__ = "adapter_downloads"
    __table_args__ = (Index("ix_adapter_downloads_adapter_day", "adapter", "day"),)

    digest: Mapped[str] = mapped_column(String(71), primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    adapter: Mapped[str] = mapped_column(String(127))
