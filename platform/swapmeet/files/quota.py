"""How much a tenant may store."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from swapmeet.database.tables import FileRow, TenantRow, UploadRow
from swapmeet.errors import QuotaExceeded


def require_storage(session: Session, tenant: str, more: int) -> None:
    """Nothing, if a tenant may store so many bytes more; its row stays locked until the transaction ends.

    Uploads under way count with all the bytes that were announced, deleted files until their bytes are gone.

    Raises:
        QuotaExceeded: it may not.
    """
    owner = session.get_one(TenantRow, tenant, with_for_update=True)
    if owner.stored_bytes is None:
        return
    files = select(func.coalesce(func.sum(FileRow.bytes), 0)).where(FileRow.tenant == tenant)
    pending = select(func.coalesce(func.sum(UploadRow.bytes), 0)).where(
        UploadRow.tenant == tenant, UploadRow.status == "pending"
    )
    used = int(session.scalar(files) or 0) + int(session.scalar(pending) or 0)
    if used + more > owner.stored_bytes:
        raise QuotaExceeded(
            f"{used} of the {owner.stored_bytes} bytes that {tenant} may store are used, and this takes {more} more. "
            "Delete files, or ask the operator for more room."
        )
