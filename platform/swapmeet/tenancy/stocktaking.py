"""How many bytes of published adapters each tenant has: the registry is asked, which others write to as well.

What the platform publishes is added at once (`note_published`); what was pushed past it, and what was withdrawn, is
seen with the next count.
"""

from collections import defaultdict

from sqlalchemy import update
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.tables import TenantRow
from swapmeet_registry import AdapterName, NotFound, Registry

Files = tuple[tuple[str, int], ...]
"""The SHA-256 and the bytes of each file of a version."""


class Stocktaking:
    """Counts what stands in one registry, for one thread; what a digest consists of is read once."""

    def __init__(self, database: Database, registry: Registry) -> None:
        self._database, self._registry = database, registry
        self._files: dict[str, Files] = {}

    def count(self) -> None:
        """Note the bytes of each tenant's versions that are not withdrawn, each file once.

        Raises:
            RegistryError: the registry can not be read; what was noted stays.
        """
        found: dict[str, dict[str, int]] = defaultdict(dict)
        there: dict[str, Files] = {}
        for name in self._registry.names():
            try:
                versions = [each for each in self._registry.show(name).versions if not each.yanked]
                for version in versions:
                    there[version.digest] = self._files.get(version.digest) or tuple(
                        (file.sha256, file.size) for file in self._registry.manifest(version).files
                    )
                    found[AdapterName.parse(name).tenant] |= dict(there[version.digest])
            except NotFound:  # removed meanwhile
                continue
        self._files = there
        totals = {tenant: sum(files.values()) for tenant, files in found.items()}

        def note(session: Session) -> None:
            for tenant in session.query(TenantRow).order_by(TenantRow.name).with_for_update():
                tenant.adapter_bytes = totals.get(tenant.name, 0)

        self._database.write(note)


def note_published(session: Session, tenant: str, bytes: int) -> None:  # noqa: A002 - the unit
    """Count a version in the transaction that tells of it."""
    more = TenantRow.adapter_bytes + bytes
    session.execute(update(TenantRow).where(TenantRow.name == tenant).values(adapter_bytes=more))
