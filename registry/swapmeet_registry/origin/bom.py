"""An adapter's bill of materials: CycloneDX 1.6 as JSON, made from its manifest alone.

The same version always has the same bytes: its serial number follows from its digest, and its time is the version's.
What is stated stands there, and nothing is guessed; hashes are those of bytes that the registry checks.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid5

from swapmeet_registry import canonical
from swapmeet_registry.manifest import Manifest
from swapmeet_registry.origin.licences import spdx
from swapmeet_registry.origin.lineage import Ancestor
from swapmeet_registry.version import Version

FORMAT = "1.6"
_NAMESPACE = UUID("5d5c6ed5-8a6f-5f0b-9d4f-6f7b0d1a7c11")
"""Of serial numbers: they are UUIDs (version 5) of digests."""

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MOST_VERSION = 1024
"""Characters that the format allows in a version."""

Json = dict[str, Any]


def bom(version: Version, manifest: Manifest, parents: Sequence[Ancestor] = ()) -> bytes:
    """A version's bill of materials.

    Args:
        version: which.
        manifest: its manifest.
        parents: the adapters that its training went on from, the last first, as `Registry.lineage` gives them.
    """
    listed = (_package(name, number) for name, number in sorted(manifest.packages.items()))
    packages = list({each["bom-ref"]: each for each in listed}.values())  # one name may be written in several ways
    model = _model(version, manifest, parents)
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": FORMAT,
        "serialNumber": f"urn:uuid:{uuid5(_NAMESPACE, version.pinned)}",
        "version": 1,
        "metadata": {"timestamp": manifest.created_at, "component": model},
        "components": [*_dataset(manifest), *packages],
        "dependencies": [
            {"ref": version.pinned, "dependsOn": [each["bom-ref"] for each in (*_dataset(manifest), *packages)]}
        ],
    }
    return canonical.encode(document)


def _model(version: Version, manifest: Manifest, parents: Sequence[Ancestor]) -> Json:
    tenant, _, name = manifest.adapter.partition("/")
    return {
        "type": "machine-learning-model",
        "bom-ref": version.pinned,
        "group": tenant,
        "name": name,
        "version": str(version.version),
        "description": f"LoRA adapter of {manifest.base.name}",
        "hashes": [_sha256(version.digest)],
        **_licensed(manifest.license),
        "pedigree": {"ancestors": [_base(manifest), *map(_parent, parents)]},
        "components": [_file(version, each.path, each.sha256, each.size) for each in manifest.files],
        "modelCard": _card(manifest),
        "properties": _properties(
            {
                "digest": version.digest,
                "lora:rank": manifest.lora.rank,
                "lora:alpha": manifest.lora.alpha,
                "lora:target_modules": manifest.lora.target_modules,
                "lora:parameters": manifest.lora.parameters,
                "lora:rslora": manifest.lora.rslora,
                "lora:dora": manifest.lora.dora,
                "run": manifest.run,
                "code": manifest.code,
                **{f"training:{key}": value for key, value in sorted(manifest.training.items())},
            }
        ),
        **({"tags": list(manifest.tags)} if manifest.tags else {}),
    }


def _card(manifest: Manifest) -> Json:
    metrics = [{"type": name, "value": repr(value)} for name, value in sorted(manifest.metrics.items())]
    data = [{"ref": each["bom-ref"]} for each in _dataset(manifest)]
    return {
        **({"modelParameters": {"datasets": data}} if data else {}),
        **({"quantitativeAnalysis": {"performanceMetrics": metrics}} if metrics else {}),
    }


def _base(manifest: Manifest) -> Json:
    base = manifest.base
    return {
        "type": "machine-learning-model",
        "bom-ref": f"base:{base.weights}",
        "name": base.name,
        **_licensed(manifest.base_license),
        "properties": _properties(
            {
                "weights": base.weights,
                "tokenizer": base.tokenizer,
                "chat_template": base.chat_template,
                "quantization": str(base.quantization),
            }
        ),
    }


def _parent(ancestor: Ancestor) -> Json:
    name, _, digest = ancestor.ref.partition("@")
    return {
        "type": "machine-learning-model",
        "bom-ref": f"parent:{ancestor.ref}",
        "name": name,
        **({"version": str(ancestor.version.version)} if ancestor.version else {}),
        **({"hashes": [_sha256(digest)]} if DIGEST.fullmatch(digest) else {}),
        **({"properties": _properties({"state": ancestor.problem})} if ancestor.problem else {}),
    }


def _dataset(manifest: Manifest) -> Iterator[Json]:
    if manifest.dataset is not None:
        yield {
            "type": "data",
            "bom-ref": f"dataset:{manifest.dataset}",
            "name": "training data",
            "hashes": [_sha256(manifest.dataset)],
            "data": [{"type": "dataset", "name": "training data"}],
            **_licensed(manifest.dataset_license),
        }


def _file(version: Version, path: str, sha256: str, size: int) -> Json:
    return {
        "type": "file",
        "bom-ref": f"{version.pinned}/{path}",
        "name": path,
        "hashes": [_sha256(sha256)],
        "properties": _properties({"size": size}),
    }


def _package(name: str, number: str) -> Json:
    address = f"pkg:pypi/{quote(name.lower().replace('_', '-'), safe='')}@{quote(number, safe='')}"
    shown = number[:MOST_VERSION]
    return {"type": "library", "bom-ref": address, "name": name, "version": shown, "purl": address}


def _licensed(name: str | None) -> Json:
    if not name or not name.strip():
        return {}
    known = spdx(name)
    return {"licenses": [{"license": {"id": known} if known else {"name": name.strip()}}]}


def _sha256(digest: str) -> Json:
    return {"alg": "SHA-256", "content": digest.removeprefix("sha256:")}


def _properties(values: Json) -> list[Json]:
    return [{"name": f"swapmeet:{key}", "value": _text(value)} for key, value in values.items() if value is not None]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else canonical.encode(value).decode()
