"""What a version is compared with: its owner's other adapters on the same base, newest first, out of the index."""

from sqlalchemy import Connection, select

from swapmeet_registry import AdapterName, Version
from swapmeet_registry.index.tables import VERSIONS


def beside(connection: Connection, version: Version, limit: int) -> list[str]:
    """The digests of others' newest usable versions; none where the index does not know the version yet."""
    row, tenant = VERSIONS.c, AdapterName.parse(version.name).tenant
    base = select(row.weights).where(row.digest == version.digest, row.name == version.name).scalar_subquery()
    others = select(row.digest).where(row.newest == 1, row.tenant == tenant, row.weights == base)
    return list(connection.scalars(others.where(row.name != version.name).order_by(row.created_at.desc()).limit(limit)))
