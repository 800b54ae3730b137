"""What comes from elsewhere is admitted as what is pushed: another store may hold what no publish would have taken.

The manifest is looked at before anything is fetched, so that a version takes no more of the disk, and of the time, than
an adapter may.
"""

from pathlib import Path

from swapmeet_registry.admission.adapter_folder import MAX_EXTRAS, MAX_FILES, MAX_WEIGHTS
from swapmeet_registry.admission.admit import admit, lora_of
from swapmeet_registry.admission.canonical_config import require_published
from swapmeet_registry.admission.lora_config import FILE as CONFIG
from swapmeet_registry.admission.lora_weights import FILE as WEIGHTS
from swapmeet_registry.errors import Refused, Unsound
from swapmeet_registry.manifest import Manifest
from swapmeet_registry.stores.files import os_errors
from swapmeet_registry.version import Version


def require_modest(version: Version, manifest: Manifest) -> None:
    """Refuse a version that says itself that it has more than an adapter may have.

    Raises:
        Unsound: it has too many files, or too large ones.
    """
    if len(manifest.files) > MAX_FILES:
        raise Unsound(f"{version} has {len(manifest.files)} files; an adapter may have {MAX_FILES}.")
    weights = sum(file.size for file in manifest.files if file.path == WEIGHTS)
    for size, most, what in (
        (weights, MAX_WEIGHTS, "weights"),
        (manifest.size - weights, MAX_EXTRAS, "files beside the weights"),
    ):
        if size > most:
            raise Unsound(f"The {what} of {version} have {size} bytes; an adapter's may have {most}.")


def require_sound(version: Version, manifest: Manifest, folder: Path) -> None:
    """Refuse a version, whose files are in a folder, that could not have been published.

    Raises:
        StoreError: the folder can not be read, or there is no room for a copy.
        Unsound: something about it; the message says what.
    """
    try:
        with admit(folder, manifest.base) as admitted:
            foreign = {file.path for file in manifest.files} - {file.path for file in admitted.files}
        if foreign:  # which a publish leaves out, unread
            raise Refused(f"{version} has {min(foreign)}, which no version of an adapter has. Do not trust it.")
        with os_errors(f"read {folder}"):
            require_published((folder / CONFIG).read_bytes())
            found = lora_of(folder)
        if found != manifest.lora:
            raise Refused(f"The manifest of {version} says something else of its weights. Do not trust it.")
    except Refused as error:  # the reason stays with the version: it is to name no folder of this machine
        raise Unsound(str(error).replace(str(folder), str(version))) from error
