"""Publish what a bundle has, once all of it was checked.

A name that was exported whole follows the file as by `mirror`. A version that was exported alone takes the next number
that is free here. Its digest is the same in either case.

Whoever may write to the registry's store may import, and a file may have adapters of any tenant. So what is taken in
can be limited to tenants; there is no import over HTTP. Signatures come along, and are asked for by whoever pulls.
"""

import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from swapmeet_registry.copies.bundle_index import Part
from swapmeet_registry.copies.bundle_source import BundleSource, opened
from swapmeet_registry.copies.copier import Copier
from swapmeet_registry.copies.notes import copy_signatures
from swapmeet_registry.errors import NotFound, Refused
from swapmeet_registry.fault import reached
from swapmeet_registry.names import AdapterName, require_tenant
from swapmeet_registry.registry import Registry
from swapmeet_registry.stores.files import os_errors
from swapmeet_registry.version import Version


@dataclass(frozen=True, slots=True)
class Imported:
    """What came out of a bundle: a version there, and its number and whether it was new here.

    `deleted` is why the version was deleted here before, if it was: then it stays so.
    """

    name: str
    version: int
    number: int
    digest: str
    new: bool
    deleted: str | None = None


def import_bundle(registry: Registry, file: Path, tenants: Collection[str] | None = None) -> tuple[Imported, ...]:
    """Publish what a file has; what is there already stays as it is.

    Args:
        registry: where to.
        file: what `export_bundle` wrote.
        tenants: whose adapters may be in it; anybody's if None.

    Raises:
        Conflict: the registry has other versions under the numbers of a name that is here as a whole.
        InvalidName: a tenant is misspelt.
        Refused: the file is damaged or no bundle, or has adapters of others than the tenants, or a version in it is
            unsound; nothing was written.
        StoreError: the file can not be read, or the registry not be written; what was published stays.
    """
    allowed = None if tenants is None else frozenset(map(require_tenant, tenants))
    with os_errors(f"read {file}"), opened(file) as bundle:
        _require_tenants(bundle, allowed, file)
        copier = Copier(bundle, registry.backend)
        for part in bundle.index.parts:
            _require_sound(copier, part)
        found = [each for part in bundle.index.parts for each in _take_in(registry, copier, part)]
        copy_signatures(bundle, registry.backend, map(AdapterName.parse, bundle.names()))
    return tuple(found)


def _require_tenants(bundle: BundleSource, allowed: frozenset[str] | None, file: Path) -> None:
    names = map(AdapterName.parse, bundle.names())
    foreign = sorted({name.tenant for name in names} - allowed) if allowed is not None else []
    if foreign:
        raise Refused(
            f"{file} has adapters of {', '.join(foreign[:10])}, who may not be in it. Allow these tenants, too, or "
            "have a file made without them."
        )


def _require_sound(copier: Copier, part: Part) -> None:
    """Refuse what could not have been published: a bundle may come from anybody."""
    for record in copier.lacking(part.head) if part.whole else part.records():
        with tempfile.TemporaryDirectory(prefix="swapmeet-") as scratch:
            copier.fetch(Version.of(part.head, record), Path(scratch))


def _take_in(registry: Registry, copier: Copier, part: Part) -> Iterator[Imported]:
    name = AdapterName.parse(part.head.adapter)
    try:
        known = {record.digest for record in registry.head(str(name)).versions}
    except NotFound:
        known = set()
    if part.whole:
        copier.follow(name)
    held = {version.digest: version for version in registry.show(str(name)).versions} if part.whole else {}
    for record in part.records():
        here = held[record.digest] if part.whole else copier.publish(part.head, record)
        reached("bundle.version")
        new = record.digest not in known
        yield Imported(str(name), record.version, here.version, record.digest, new, here.deleted)
