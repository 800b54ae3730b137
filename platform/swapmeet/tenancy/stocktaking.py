"""What each tenant has in the registry, and what of it others may read: it is asked, as others write to it as well.

What the platform publishes or withdraws counts at once (`note_published`, `note_withdrawn`); what was done past it is
seen with the next count.
"""

from collections import Counter, defaultdict

from sqlalchemy import case, select, update
from sqlalchemy.orm import Session

from swapmeet.adapter_access import note_all, readers_of
from swapmeet.database import Database
from swapmeet.database.tables import TenantRow
from swapmeet.database.tables.base import now
from swapmeet_registry import AdapterName, Manifest, NotFound, Registry, Version
from swapmeet_registry.index.tables import FILES, VERSIONS

Files = tuple[tuple[str, int], ...]
"""The SHA-256 and the bytes of each file of a version."""


class Stocktaking:
    """Counts what stands in one registry, for one thread; what a digest consists of is read once."""

    def __init__(self, database: Database, registry: Registry) -> None:
        self._database, self._registry = database, registry
        self._files: dict[str, Files] = {}

    def count(self) -> None:
        """Note the bytes of each tenant's versions that are not withdrawn, each file once, their number, and readers.

        Raises:
            RegistryError: the registry can not be read; what was noted stays.
        """
        found: dict[str, dict[str, int]] = defaultdict(dict)
        there: dict[str, Files] = {}
        versions_of: Counter[str] = Counter()
        readers: list[tuple[str, str]] = []
        began = now()
        for name in self._registry.names():
            try:
                listing, owner = self._registry.show(name), AdapterName.parse(name).tenant
                readers += [(name, reader) for reader in readers_of(listing)]
                versions = [each for each in listing.versions if each.usable]
                versions_of[owner] += len(versions)
                for version in versions:
                    there[version.digest] = self._files.get(version.digest) or files_of(
                        self._registry.manifest(version)
                    )
                    found[owner] |= dict(there[version.digest])
            except NotFound:  # removed meanwhile
                continue
        self._files = there
        totals = {tenant: sum(files.values()) for tenant, files in found.items()}

        def note(session: Session) -> None:
            for tenant in session.query(TenantRow).order_by(TenantRow.name).with_for_update():
                tenant.adapter_bytes = totals.get(tenant.name, 0)
                tenant.adapter_versions = versions_of[tenant.name]
            note_all(session, readers, began)

        self._database.write(note)


def note_published(session: Session, tenant: str, bytes: int) -> None:  # noqa: A002 - the unit
    """Count a version in the transaction that tells of it."""
    more = {"adapter_bytes": TenantRow.adapter_bytes + bytes, "adapter_versions": TenantRow.adapter_versions + 1}
    session.execute(update(TenantRow).where(TenantRow.name == tenant).values(**more))


def note_withdrawn(session: Session, version: Version, files: Files) -> None:
    """Take a version out of the count, with those of its files that no other usable version of its tenant has.

    Which these are, the index says. What it does not know yet may be counted too low until the next count.
    """
    tenant = AdapterName.parse(version.name).tenant
    others = (VERSIONS.c.name != version.name) | (VERSIONS.c.version != version.version)
    having = VERSIONS.c.tenant == tenant, VERSIONS.c.usable == 1, FILES.c.sha256.in_([sha256 for sha256, _ in files])
    query = select(FILES.c.sha256).join(VERSIONS, VERSIONS.c.id == FILES.c.id).where(*having, others)
    kept = set(session.scalars(query.distinct()))
    less = {
        TenantRow.adapter_bytes: sum(size for sha256, size in dict(files).items() if sha256 not in kept),
        TenantRow.adapter_versions: 1,
    }
    left = {column.key: case((column > each, column - each), else_=0) for column, each in less.items()}
    session.execute(update(TenantRow).where(TenantRow.name == tenant).values(**left))


def files_of(manifest: Manifest) -> Files:
    """What a version consists of, as it is counted."""
    return tuple((file.sha256, file.size) for file in manifest.files)
