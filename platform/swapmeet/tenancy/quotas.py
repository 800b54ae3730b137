"""How much a tenant may run and store; requests and tokens a minute are the matter of rates.py."""

from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.tables import FileRow, UploadRow, UsageRow
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

    def gpu_seconds_left(self, session: Session, tenant: str, at: datetime | None = None) -> float | None:
        """What is left of a tenant's GPU-seconds on the day, in UTC, of a moment; None is without limit.

        Raises:
            NotFound: there is no such tenant.
        """
        limit = tenant_row(session, tenant).gpu_seconds_a_day
        if limit is None:
            return None
        day = (at or now()).replace(hour=0, minute=0, second=0, microsecond=0)
        used = select(func.coalesce(func.sum(UsageRow.amount), 0)).where(
            UsageRow.tenant == tenant, UsageRow.kind == "gpu_seconds", UsageRow.at >= day
        )
        return float(limit - int(session.scalar(used) or 0))


def stored_bytes(session: Session, tenant: str) -> int:
    """The bytes of a tenant's files, and of its uploads that are pending."""
    files = select(func.sum(FileRow.bytes)).where(FileRow.tenant == tenant)
    uploads = select(func.sum(UploadRow.bytes)).where(
        UploadRow.tenant == tenant, UploadRow.status == "pending", UploadRow.expires_at > now()
    )
    return int(session.scalar(files) or 0) + int(session.scalar(uploads) or 0)
