"""What must be there before anything is served: a home folder with room, a registry, a database with a first key."""

import shutil
from pathlib import Path

from swapmeet.database import Database
from swapmeet.database.migrations import upgrade
from swapmeet.errors import ServerFailed
from swapmeet.settings import Settings
from swapmeet.tenancy import Tenancy
from swapmeet.tenancy.operator_key import operator_key
from swapmeet_registry import Registry, StoreError, open_store
from swapmeet_registry.stores.local import LocalStore

FREE_BYTES = 512 << 20
FOLDERS = "folders.txt"
"""In the home: the folders elsewhere that registry and storage are in, so that one that vanishes is told from a new."""


def prepare(settings: Settings) -> str:
    """Make the home folder, look at disk and registry, bring the database up to date, and give the operator's key.

    Raises:
        DatabaseFailed: the database can not be used, or is of a newer version.
        ServerFailed: the home can not be used.
        SigningKeyInvalid: the trusted keys can not be read.
        StoreError: the registry can not be read, or a folder that was in use has vanished.
    """
    try:
        settings.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServerFailed(
            f"{settings.folder} can not be made ({error.strerror}). Choose another: --home DIR."
        ) from error
    if shutil.disk_usage(settings.folder).free < FREE_BYTES:
        raise ServerFailed(f"Less than {FREE_BYTES >> 20} MiB are free under {settings.folder}. Make room first.")
    for url in (settings.registry_url, settings.storage_url):
        _begin(url, settings.folder)
    Registry(settings.registry_url).names()
    settings.trust.keys_for()
    database = Database(settings.database_url)
    try:
        upgrade(database)
        return operator_key(Tenancy(database), settings.folder)
    finally:
        database.close()


def _begin(url: str, home: Path) -> None:
    """Make a local folder for a registry or a storage; one that an earlier start made must still be there."""
    known = (home / FOLDERS).read_text().splitlines() if (home / FOLDERS).is_file() else []
    store = open_store(url, used=url in known)
    if not isinstance(store, LocalStore):
        return
    try:
        store.begin()
    except StoreError as error:
        if url not in known:
            raise
        raise StoreError(f"{error} To begin with an empty one, delete its line in {home / FOLDERS}.") from error
    if url not in known and not store.root.is_relative_to(home):
        with (home / FOLDERS).open("a") as stream:
            stream.write(f"{url}\n")
