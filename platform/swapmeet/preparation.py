"""What must be there before anything is served: a home folder with room, a registry, a database with a first key."""

import shutil

from swapmeet.database import Database
from swapmeet.database.migrations import upgrade
from swapmeet.errors import ServerFailed
from swapmeet.settings import Settings
from swapmeet.tenancy import Tenancy
from swapmeet.tenancy.operator_key import operator_key
from swapmeet_registry import Registry

FREE_BYTES = 512 << 20


def prepare(settings: Settings) -> str:
    """Make the home folder, look at disk and registry, bring the database up to date, and give the operator's key.

    Raises:
        DatabaseFailed: the database can not be used, or is of a newer version.
        ServerFailed: the home can not be used.
        StoreError: the registry can not be read.
    """
    try:
        settings.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServerFailed(
            f"{settings.folder} can not be made ({error.strerror}). Choose another: --home DIR."
        ) from error
    if shutil.disk_usage(settings.folder).free < FREE_BYTES:
        raise ServerFailed(f"Less than {FREE_BYTES >> 20} MiB are free under {settings.folder}. Make room first.")
    Registry(settings.registry_url).names()
    database = Database(settings.database_url)
    try:
        upgrade(database)
        return operator_key(Tenancy(database), settings.folder)
    finally:
        database.close()
