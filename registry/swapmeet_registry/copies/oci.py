"""A version as an OCI image layout, which skopeo, oras, podman and registries read: one layer for each file.

    oci-layout
    index.json                  one manifest, under the version's number as its name
    blobs/sha256/HEX            the manifest, its configuration, and the files as they are, not packed

The media types are those of the CNCF's ModelPack (github.com/modelpack/model-spec). A layer's digest is its file's, as
in the version's own manifest, and the same version always gives the same bytes. `oras pull` makes the folder that
`Registry.pull` makes.
"""

import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from swapmeet_registry import canonical
from swapmeet_registry.errors import Refused
from swapmeet_registry.manifest import Manifest, StoredFile
from swapmeet_registry.origin.provenance import Provenance
from swapmeet_registry.stores.files import make_folder, os_errors, sync_folder, write_file
from swapmeet_registry.version import Version

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
WEIGHTS = "application/vnd.cncf.model.weight.v1.raw"
SETTINGS = "application/vnd.cncf.model.weight.config.v1.raw"
WORDS = "application/vnd.cncf.model.doc.v1.raw"
TITLE, FILE_PATH = "org.opencontainers.image.title", "org.cncf.model.filepath"
REF_NAME = "org.opencontainers.image.ref.name"
OWN = "dev.swapmeet."
"""Where our own annotations begin: the version's digest, and the base's fingerprint."""
_WORDS = re.compile(r"README\.md|LICEN[CS]E(\.md)?|NOTICE|.+\.txt")

Descriptor = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Exported:
    """A version, and the digest and name of its manifest in the layout."""

    version: Version
    manifest: str
    tag: str


class Versions(Protocol):
    """Where versions are read from: a registry's store, or a server."""

    def resolve(self, ref: str) -> Version:
        """The version that a reference names."""
        ...

    def manifest(self, version: Version) -> Manifest:
        """What a version consists of."""
        ...

    def require_signed(self, version: Version, manifest: Manifest) -> None:
        """Do as the policy on signatures says."""
        ...

    def stream(self, version: Version, file: StoredFile) -> Iterator[bytes]:
        """A file's bytes in pieces, compared with its digest."""
        ...


def export_oci(registry: Versions, ref: str, folder: Path) -> Exported:
    """Write a version as an OCI layout into a folder, which appears whole or not at all.

    Args:
        registry: where it is.
        ref: which version.
        folder: must not exist, or be empty.

    Raises:
        Corrupt: stored bytes differ from their digest.
        NotFound: there is no such version.
        Refused: the folder holds something.
        SignatureInvalid: no trusted key signed it, and one is asked for.
        StoreError: the disk is full, or the folder may not be written.
    """
    version = registry.resolve(ref)
    manifest = registry.manifest(version)
    registry.require_signed(version, manifest)
    folder = Path(folder).resolve()
    with os_errors(f"write {folder}"):
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise Refused(f"{folder} holds something already. Name a new folder.")
        make_folder(folder.parent)
        partial = folder.with_name(f".{folder.name}.{uuid4().hex}.partial")
        try:
            digest = _Layout(partial).write(version, manifest, registry)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        sync_folder(folder.parent)
    return Exported(version, digest, str(version.version))


class _Layout:
    """A layout that is being written."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._blobs = folder, folder / "blobs" / "sha256"
        self._blobs.mkdir(parents=True)

    def write(self, version: Version, manifest: Manifest, registry: Versions) -> str:
        """Write all of it; gives the manifest's digest."""
        layers = [self._layer(file, registry.stream(version, file)) for file in manifest.files]
        layers.append(self._provenance(manifest))
        layers.sort(key=lambda layer: layer["annotations"][TITLE])
        described = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": ARTIFACT,
            "config": self._document(CONFIG, _config(version, manifest, layers)),
            "layers": layers,
            "annotations": _annotations(version, manifest),
        }
        descriptor = self._document(MANIFEST, described)
        listed = descriptor | {"artifactType": ARTIFACT, "annotations": {REF_NAME: str(version.version)}}
        self._write("index.json", {"schemaVersion": 2, "mediaType": INDEX, "manifests": [listed]})
        self._write("oci-layout", {"imageLayoutVersion": "1.0.0"})
        for each in (self._blobs, self._blobs.parent, self._folder):
            sync_folder(each)
        return str(descriptor["digest"])

    def _layer(self, file: StoredFile, chunks: Iterable[bytes]) -> Descriptor:
        if not (path := self._blobs / file.sha256).exists():  # two files may have the same bytes
            write_file(path, path.with_suffix(".partial"), chunks)
        kind = WEIGHTS if file.path.endswith(".safetensors") else WORDS if _WORDS.fullmatch(file.path) else SETTINGS
        named = {TITLE: file.path, FILE_PATH: file.path}
        return {"mediaType": kind, "digest": f"sha256:{file.sha256}", "size": file.size, "annotations": named}

    def _provenance(self, manifest: Manifest) -> Descriptor:
        data = manifest.provenance().encode()
        file = StoredFile(path=Provenance.FILE, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        return self._layer(file, [data])

    def _document(self, kind: str, document: dict[str, Any]) -> Descriptor:
        data = canonical.encode(document)
        digest = canonical.digest(data)
        path = self._blobs / digest.removeprefix("sha256:")
        write_file(path, path.with_suffix(".partial"), [data])
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    def _write(self, name: str, document: dict[str, Any]) -> None:
        path = self._folder / name
        write_file(path, path.with_name(f".{name}.partial"), [canonical.encode(document)])


def _config(version: Version, manifest: Manifest, layers: list[Descriptor]) -> dict[str, Any]:
    """ModelPack's configuration of a model; an adapter's parameters are its own, without the base's."""
    owner, _, name = version.name.partition("/")
    descriptor: dict[str, Any] = {
        "createdAt": manifest.created_at,
        "name": name,
        "title": version.name,
        "vendor": owner,
        "version": str(version.version),
        "revision": version.digest,
        "description": f"A LoRA adapter of rank {manifest.lora.rank} for {manifest.base.name}.",
    }
    if manifest.license:
        descriptor["licenses"] = [manifest.license]
    return {
        "descriptor": descriptor,
        "config": {
            "format": "safetensors",
            "paramSize": str(manifest.lora.parameters),
            "capabilities": {"inputTypes": ["text"], "outputTypes": ["text"]},
        },
        "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in layers]},
    }


def _annotations(version: Version, manifest: Manifest) -> dict[str, str]:
    base = manifest.base
    found = {
        TITLE: version.name,
        "org.opencontainers.image.version": str(version.version),
        "org.opencontainers.image.created": manifest.created_at,
        "org.opencontainers.image.licenses": manifest.license,
        "org.opencontainers.image.base.name": base.name,
        f"{OWN}adapter": version.name,
        f"{OWN}digest": version.digest,
        f"{OWN}base.weights": base.weights,
        f"{OWN}base.tokenizer": base.tokenizer,
        f"{OWN}base.chat-template": base.chat_template,
        f"{OWN}base.quantization": str(base.quantization),
    }
    return {key: value for key, value in found.items() if value is not None}
