"""Versions that are withdrawn by the platform: what deleted ones took of their tenant's quotas is free at once."""

import logging

from swapmeet.database import Database
from swapmeet.tenancy.stocktaking import Files, files_of, note_deleted
from swapmeet_registry import AdapterName, Registry, RegistryError, Version
from swapmeet_registry.head import Withdrawal

log = logging.getLogger("swapmeet.gateway")


def withdraw(registry: Registry, database: Database, ref: str, how: Withdrawal, reason: str) -> Version:
    """Withdraw a version; of several who delete it, one takes it out of the count. Yanked and recalled ones stay in it.

    Raises:
        NotFound: there is no such version.
        Refused: the reason is empty, or no version is named.
    """
    done = registry.withdraw(ref, how, reason)
    if how == "deleted" and done.first:
        files = _files(registry, done.version)
        database.write(lambda session: note_deleted(session, done.version, files))
    return done.version


def delete_all(registry: Registry, database: Database, name: AdapterName, reason: str) -> None:
    """Delete every version of a name that is not deleted yet; the name stays taken.

    Raises:
        NotFound: there is no such adapter.
    """
    for version in registry.show(str(name)).versions:
        if version.deleted is None:
            withdraw(registry, database, str(version), "deleted", reason)


def _files(registry: Registry, version: Version) -> Files:
    try:
        return files_of(registry.manifest(version))
    except RegistryError as error:  # it is deleted: its bytes are seen to with the next count
        log.warning("the bytes of %s are not free yet: %s", version, error)
        return ()
