"""What the index has of a version, as the values of its row."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from swapmeet_registry.index import words as texts
from swapmeet_registry.index.looking import TASK, Content
from swapmeet_registry.index.tables import MOST_KEY, folded
from swapmeet_registry.manifest import Manifest
from swapmeet_registry.names import LATEST, AdapterName
from swapmeet_registry.version import Listing, Version

LARGEST_INTEGER, LARGEST = 2**31 - 1, 2**63 - 1


def state_of(listing: Listing, version: Version) -> dict[str, Any]:
    """What of a version's row may change."""
    withdrawn = "recalled" if version.recalled is not None else "yanked" if version.yanked else None
    return {
        "newest": int(listing.aliases.get(LATEST) == version.version),
        "usable": int(version.usable),
        "public": int(listing.visibility == "public"),
        "withdrawn": withdrawn,
    }


def row_of(listing: Listing, version: Version, content: Content) -> dict[str, Any]:
    """A new version's row, but for whose it is and its counts."""
    manifest, task = content.manifest, content.task
    shown = {
        "base": manifest.base.name,
        "license": manifest.license,
        "task": task,
        "tags": manifest.tags,
        "targets": manifest.lora.target_modules,
        "metrics": manifest.metrics,
        "purpose": content.readme.purpose,
        "visibility": listing.visibility,
    }
    return {
        **state_of(listing, version),
        "version": version.version,
        "tenant": AdapterName.parse(listing.name).tenant,
        "created_at": version.created_at,
        "rank": min(manifest.lora.rank, LARGEST_INTEGER),
        "size": min(manifest.size, LARGEST),
        "parameters": min(manifest.lora.parameters, LARGEST),
        "weights": manifest.base.weights.replace("\0", "")[:MOST_KEY],
        "base_key": folded(manifest.base.name),
        "license_key": folded(manifest.license) if manifest.license else None,
        "task_key": folded(task) if task else None,
        "name": listing.name,
        "digest": version.digest,
        "shown": dumped(shown),
    }


def metrics_of(manifest: Manifest) -> Iterable[tuple[str, float]]:
    """A version's metrics, by names that fit."""
    return {name.replace("\0", "")[:MOST_KEY]: value for name, value in manifest.metrics.items()}.items()


def words_of(name: str, content: Content) -> Iterator[list[str]]:
    """A version's words, by `COLUMNS`."""
    manifest, readme = content.manifest, content.readme
    labels = [*manifest.tags, manifest.base.name, manifest.license or "", content.task or "", *readme.language]
    yield texts.words(name)
    yield texts.words(" ".join(label.removeprefix(TASK) for label in labels))
    yield texts.words(readme.purpose or "")
    yield texts.words(readme.text)


def dumped(value: dict[str, Any]) -> str:
    """What is shown of a version, as the index keeps it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
