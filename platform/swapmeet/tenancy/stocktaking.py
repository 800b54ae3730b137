"""What each tenant has in the registry, and what of it others may read: it is asked, as others write to it as well.

What the platform publishes or deletes counts at once (`note_published`, `note_deleted`); what was done past it is seen
with the next count. A count takes a while, and both are done by several servers, in any order: a head is changed first
and noted a moment later, and a count may have read it before, in between, or after. So each version that comes or goes
leaves a row (`ChangeRow`), whoever sees it first, a note or a count. A note that finds it has nothing left to do; a
count believes it more than the head that it read, which is older or says the same.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import case, delete, exists, select, update
from sqlalchemy.orm import Session

from swapmeet.adapter_access import note_all, readers_of
from swapmeet.database import Database
from swapmeet.database.tables import ChangeRow, TenantRow
from swapmeet.database.tables.base import now
from swapmeet_registry import AdapterName, Listing, Manifest, NotFound, Registry, Version
from swapmeet_registry.head import Record
from swapmeet_registry.index.tables import FILES, VERSIONS

Files = tuple[tuple[str, int], ...]
"""The SHA-256 and the bytes of each file of a version."""
Key = tuple[str, str]
"""A version's name and digest."""
NEW = timedelta(days=1)
"""For how long a version's coming or going may still be on its way to be noted."""
KEPT = 2 * NEW
"""How long rows stay: longer, as clocks differ."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A version as a count found it: its files, whether it is deleted, and whether it came or went lately."""

    files: Files
    deleted: bool
    new: bool


class Stocktaking:
    """Counts what stands in one registry, for one thread; what a digest consists of is read once."""

    def __init__(self, database: Database, registry: Registry) -> None:
        self._database, self._registry = database, registry
        self._files: dict[str, Files] = {}

    def count(self) -> None:
        """Note the bytes of each tenant's versions that are not deleted, each file once, their number, and readers.

        Raises:
            RegistryError: the registry can not be read; what was noted stays.
        """
        began = now()
        seen: dict[Key, Seen] = {}
        there: dict[str, Files] = {}
        readers: list[tuple[str, str]] = []
        for name in self._registry.names():
            try:
                head = self._registry.head(name)
                listing = Listing.of(head)
                readers += [(name, reader) for reader in readers_of(listing)]
                for version, record in zip(listing.versions, head.versions, strict=True):
                    gone = record.deleted is not None
                    if not gone:
                        there[version.digest] = self._files_of(version)
                    seen[name, version.digest] = Seen(there[version.digest] if not gone else (), gone, _new(record))
            except NotFound:  # removed meanwhile
                continue
        self._files = there

        def note(session: Session) -> None:
            tenants = session.query(TenantRow).order_by(TenantRow.name).with_for_update().all()
            counted = _settled(session, seen, {tenant.name for tenant in tenants})
            for tenant in tenants:
                tenant.adapter_bytes, tenant.adapter_versions = counted[tenant.name]
            note_all(session, readers, began)

        self._database.write(note)

    def _files_of(self, version: Version) -> Files:
        return self._files.get(version.digest) or files_of(self._registry.manifest(version))


def note_published(session: Session, version: Version, bytes: int) -> None:  # noqa: A002 - the unit
    """Count a version in the transaction that tells of it, unless it is in the count already, or gone again.

    All its bytes are: a file that its tenant has already counts twice until the next count.
    """
    if not _locked(session, version) or _old(version):  # such a one is published once more, and was counted long ago
        return
    if session.get(ChangeRow, (version.name, version.digest)) is not None:
        return
    session.add(ChangeRow(name=version.name, digest=version.digest, bytes=bytes, deleted=False))
    session.flush()
    more = {"adapter_bytes": TenantRow.adapter_bytes + bytes, "adapter_versions": TenantRow.adapter_versions + 1}
    session.execute(update(TenantRow).where(TenantRow.name == _tenant(version)).values(**more))


def note_deleted(session: Session, version: Version, files: Files) -> None:
    """Take a version out of the count, if it is in it, with those of its files that its tenant has nowhere else.

    Which these are, the index says. What it does not know yet may be counted too low until the next count.
    """
    if not _locked(session, version):
        return
    row = session.get(ChangeRow, (version.name, version.digest))
    counted = not row.deleted if row else _old(version)
    if row is None:
        row = ChangeRow(name=version.name, digest=version.digest)
        session.add(row)
    row.deleted, row.at = True, now()
    session.flush()
    if not counted:
        return
    kept = _kept(session, _tenant(version), files)
    less = {
        TenantRow.adapter_bytes: sum(size for sha256, size in dict(files).items() if sha256 not in kept),
        TenantRow.adapter_versions: 1,
    }
    left = {column.key: case((column > each, column - each), else_=0) for column, each in less.items()}
    session.execute(update(TenantRow).where(TenantRow.name == _tenant(version)).values(**left))


def files_of(manifest: Manifest) -> Files:
    """What a version consists of, as it is counted."""
    return tuple((file.sha256, file.size) for file in manifest.files)


def _settled(session: Session, seen: dict[Key, Seen], tenants: set[str]) -> defaultdict[str, tuple[int, int]]:
    """Each tenant's bytes and versions: what a count saw, as far as nothing newer is noted; what it saw is, too."""
    session.execute(delete(ChangeRow).where(ChangeRow.at < now() - KEPT))
    noted = {(row.name, row.digest): row for row in session.scalars(select(ChangeRow))}
    files: defaultdict[str, dict[str, int]] = defaultdict(dict)
    versions: Counter[str] = Counter()
    unseen: Counter[str] = Counter()
    for key, each in seen.items():
        row, tenant = noted.get(key), key[0].partition("/")[0]
        if row is not None and each.deleted:
            row.deleted = True
        elif row is None and each.new and tenant in tenants:
            size = sum(dict(each.files).values())
            session.add(ChangeRow(name=key[0], digest=key[1], bytes=size, deleted=each.deleted))
        if not (each.deleted or (row is not None and row.deleted)):
            files[tenant] |= dict(each.files)
            versions[tenant] += 1
    for key, row in noted.items():  # its head was read before it was published
        if key not in seen and not row.deleted:
            unseen[key[0].partition("/")[0]] += row.bytes
            versions[key[0].partition("/")[0]] += 1
    counted = {tenant: (sum(files[tenant].values()) + unseen[tenant], versions[tenant]) for tenant in versions}
    return defaultdict(lambda: (0, 0), counted)


def _kept(session: Session, tenant: str, files: Files) -> set[str]:
    """Which files a tenant has in other versions: the index has all but deleted ones, and learns of these later."""
    gone = exists().where(ChangeRow.name == VERSIONS.c.name, ChangeRow.digest == VERSIONS.c.digest, ChangeRow.deleted)
    having = VERSIONS.c.tenant == tenant, FILES.c.sha256.in_([sha256 for sha256, _ in files]), ~gone
    query = select(FILES.c.sha256).join(VERSIONS, VERSIONS.c.id == FILES.c.id).where(*having)
    return set(session.scalars(query.distinct()))


def _locked(session: Session, version: Version) -> bool:
    """Have a version's tenant to oneself until the transaction ends; False where there is none of the name."""
    query = select(TenantRow.name).where(TenantRow.name == _tenant(version)).with_for_update()
    return session.scalar(query) is not None


def _tenant(version: Version) -> str:
    return AdapterName.parse(version.name).tenant


def _old(version: Version) -> bool:
    return datetime.fromisoformat(version.created_at) < now() - NEW


def _new(record: Record) -> bool:
    """Whether a version came or went lately."""
    return datetime.fromisoformat(max(record.created_at, record.withdrawn_at or "")) > now() - NEW
