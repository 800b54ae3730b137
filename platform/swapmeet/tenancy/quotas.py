"""How much a tenant may store, and its limits.

What it may run is counted where that is decided (`swapmeet.queue.shares`), requests and tokens a minute by rates.py.
"""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.tables import FileRow, UploadRow
from swapmeet.database.tables.base import now
from swapmeet.errors import QuotaExceeded
from swapmeet.tenancy.caller import Limits
from swapmeet.tenancy.tenants import limits_of, tenant_row


def require_storage(session: Session, tenant: str, bytes: int) -> None:  # noqa: A002 - the unit
    """Let a transaction store some more bytes for a tenant; of those that try at once, one after the other.

    What is counted are its files, deleted ones until their bytes are gone, and its uploads that are pending, by the
    size that they were announced with: a transaction that turns an upload into a file ends the upload first.

    Raises:
        NotFound: there is no such tenant.
        QuotaExceeded: it would be more than the tenant may store; the message says how much there is.
    """
    limit = tenant_row(session, tenant, lock=True).stored_bytes
    if limit is None:
        return
    stored = stored_bytes(session, tenant)
    if stored + bytes > limit:
        raise QuotaExceeded(
            f"{bytes} bytes more are over your quota: {stored} of {limit} bytes are stored. Delete files first, "
            "or ask the operator for more."
        )


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


def stored_bytes(session: Session, tenant: str) -> int:
    """The bytes of a tenant's files, and of its uploads that are pending."""
    files = select(func.sum(FileRow.bytes)).where(FileRow.tenant == tenant)
    uploads = select(func.sum(UploadRow.bytes)).where(
        UploadRow.tenant == tenant, UploadRow.status == "pending", UploadRow.expires_at > now()
    )
    return int(session.scalar(files) or 0) + int(session.scalar(uploads) or 0)
