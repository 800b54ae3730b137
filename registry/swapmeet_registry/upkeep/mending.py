"""Write anew what a store lost, out of another registry that has the same versions."""

import tempfile
from pathlib import Path

from swapmeet_registry import canonical
from swapmeet_registry.backend import Backend
from swapmeet_registry.contents import Contents
from swapmeet_registry.errors import Corrupt, RegistryError, StoreError
from swapmeet_registry.manifest import Manifest, StoredFile
from swapmeet_registry.store_backend import StoreBackend, blob_key, manifest_key
from swapmeet_registry.version import Version


class Mender:
    """Takes only what has the digest that it must have, so it can do no harm."""

    def __init__(self, backend: Backend, source: Backend) -> None:
        self._backend, self._source = backend, source

    def manifest(self, version: Version) -> Manifest | None:
        """Write a version's manifest; None where that can not be done."""
        if not isinstance(self._backend, StoreBackend):
            return None
        try:
            data = self._source.manifest(version)
            if data is None or canonical.digest(data) != version.digest:
                return None
            manifest = Manifest.decode(data, f"The manifest of {version}")
        except StoreError:
            raise
        except RegistryError:
            return None
        self._backend.store.put(manifest_key(version.digest), data, version.digest.removeprefix("sha256:"))
        return manifest

    def file(self, version: Version, file: StoredFile) -> bool:
        """Write a file of a version; False where that can not be done."""
        if not isinstance(self._backend, StoreBackend):
            return False
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "blob"
            try:
                with path.open("wb") as stream:
                    stream.writelines(Contents(self._source).blob(version, file))
            except Corrupt:
                return False
            self._backend.store.put(blob_key(file), path, file.sha256)
        return True
