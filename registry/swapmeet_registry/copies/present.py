"""Whether a folder is a version already, told by the folder itself: without asking the store for the manifest."""

import hashlib
from pathlib import Path

from swapmeet_registry.admission.admit import lora_of
from swapmeet_registry.manifest import Manifest, StoredFile
from swapmeet_registry.origin.provenance import Provenance
from swapmeet_registry.version import Version


def present(version: Version, folder: Path) -> Manifest | None:
    """A version's manifest, made anew from a folder that holds the version; None where it does not.

    A pulled folder lacks only what a head knows of its version, the name and the time. With these its files make the
    manifest, and if that has the version's digest, the folder is the version to the last byte. None is given, too,
    where another release of this package wrote the manifest in another way.
    """
    told = folder / Provenance.FILE
    try:
        if not told.is_file():
            return None
        data = told.read_bytes()
        manifest = Manifest.build(
            **Provenance.decode(data, str(told)).facts(),
            adapter=version.name,
            created_at=version.created_at,
            files=tuple(_file(path) for path in sorted(folder.iterdir(), key=lambda path: path.name) if path != told),
            lora=lora_of(folder),
        )
    except (OSError, ValueError):  # of paths that can not be, and files that no version has, whatever they are called
        return None
    return manifest if (manifest.digest, manifest.provenance().encode()) == (version.digest, data) else None


def _file(path: Path) -> StoredFile:
    if not path.is_file():
        raise FileNotFoundError(path)
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return StoredFile(path=path.name, size=path.stat().st_size, sha256=sha256)
