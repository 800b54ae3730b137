"""How much a tenant may store, and its limits.

What it may run is counted where that is decided (`swapmeet.queue.shares`), requests and tokens a minute by rates.py.
"""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.tables import FileRow, JobRow, PublishRow, TenantRow, UploadRow
from swapmeet.database.tables.base import now
from swapmeet.errors import QuotaExceeded
from swapmeet.tenancy.caller import Limits
from swapmeet.tenancy.tenants import limits_of, tenant_row


def require_storage(session: Session, tenant: str, bytes: int, what: str = "") -> None:  # noqa: A002 - the unit
    """Let a transaction store some more bytes for a tenant; of those that try at once, one after the other.

    `stored_bytes` says what is counted. A transaction that turns an upload into a file ends the upload first.

    Args:
        session: the transaction.
        tenant: whose.
        bytes: how many more; with 0, there must be room for anything at all.
        what: they are, for the message.

    Raises:
        NotFound: there is no such tenant.
        QuotaExceeded: it would be more than the tenant may store; the message says how much there is.
    """
    row = tenant_row(session, tenant, lock=True)
    if row.stored_bytes is None:
        return
    stored = stored_bytes(session, row)
    if stored.total + max(bytes, 1) > row.stored_bytes:
        more = f"{bytes} bytes more{what and f' {what}'} are" if bytes else f"{what or 'Anything more'} is"
        raise QuotaExceeded(
            f"{more} over your quota: {stored.total} of {row.stored_bytes} bytes are stored ({stored}). Delete files "
            "or models first, or ask the operator for more."
        )


def require_versions(session: Session, tenant: str) -> None:
    """Let a transaction publish one more version for a tenant; those that are being published count.

    Raises:
        NotFound: there is no such tenant.
        QuotaExceeded: it would be more than the tenant may have.
    """
    row = tenant_row(session, tenant, lock=True)
    if row.stored_versions is None:
        return
    coming = int(session.scalar(select(func.count()).where(*_coming(tenant))) or 0)
    if row.adapter_versions + coming + 1 > row.stored_versions:
        raise QuotaExceeded(
            f"One version more is over your quota: {row.adapter_versions} of {row.stored_versions} are published, "
            f"and {coming} are on their way. Delete some first, or ask the operator for more."
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes of a tenant."""

    files: int
    uploads: int
    publishes: int
    checkpoints: int
    adapters: int

    @property
    def total(self) -> int:
        """Of all."""
        return self.files + self.uploads + self.publishes + self.checkpoints + self.adapters

    def __str__(self) -> str:
        each = ("files", "uploads", "publishes", "checkpoints", "adapters")
        return ", ".join(f"{getattr(self, name)} in {name}" for name in each if getattr(self, name)) or "nothing"


class Quotas:
    """The quotas of the tenants in one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def limits(self, tenant: str) -> Limits:
        """A tenant's limits.

        Raises:
            NotFound: there is no such tenant.
        """
        return self._database.read(lambda session: limits_of(tenant_row(session, tenant)))

    require_storage = staticmethod(require_storage)


def stored_bytes(session: Session, tenant: TenantRow) -> Stored:
    """What a tenant stores.

    Files count, deleted ones until their bytes are gone; pending uploads and publishes by the size that they were
    announced with; the checkpoints that its jobs may go on from; and its published adapters that are not deleted,
    since yanked and recalled ones keep their bytes.
    """
    files = select(func.sum(FileRow.bytes)).where(FileRow.tenant == tenant.name)
    uploads = select(func.sum(UploadRow.bytes)).where(
        UploadRow.tenant == tenant.name, UploadRow.status == "pending", UploadRow.expires_at > now()
    )
    kept = select(func.sum(JobRow.kept_bytes)).where(JobRow.tenant == tenant.name, JobRow.kept_bytes > 0)
    coming = select(func.sum(PublishRow.bytes)).where(*_coming(tenant.name))
    found = [int(session.scalar(query) or 0) for query in (files, uploads, coming, kept)]
    return Stored(found[0], found[1], found[2], found[3], tenant.adapter_bytes)


def _coming(tenant: str) -> tuple[ColumnElement[bool], ...]:
    """Which publishes are under way."""
    return PublishRow.tenant == tenant, PublishRow.status == "pending", PublishRow.expires_at > now()
