"""Repositories, trees and refs, as a Hub describes them."""

import hashlib
import json
import re
from typing import Any

import yaml

from swapmeet.gateway.hub_api.repositories import Repository, commit_of
from swapmeet.gateway.hub_api.snapshots import CARD, File, Snapshot

TASK, LIBRARY = "text-generation", "peft"
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*\n", re.DOTALL)


def model(repository: Repository, snapshot: Snapshot, *, blobs: bool = False) -> dict[str, Any]:
    """A repository at one of its commits; with `blobs`, its files' sizes and digests."""
    version, manifest, card = snapshot.version, snapshot.manifest, _card(snapshot)
    head, first = repository.head, version if repository.only else repository.head.versions[0]
    return {
        "_id": hashlib.sha256(head.adapter.encode()).hexdigest()[:24],
        "id": head.adapter,
        "modelId": head.adapter,
        "author": head.adapter.partition("/")[0],
        "sha": commit_of(version.digest),
        "lastModified": _moment(version.created_at),
        "createdAt": _moment(first.created_at),
        "private": head.visibility != "public",
        "gated": False,
        "disabled": False,
        "library_name": LIBRARY,
        "pipeline_tag": TASK,
        "tags": tags(snapshot),
        "cardData": card,
        "config": {"peft": _peft(snapshot)},
        "siblings": [_sibling(file, blobs=blobs) for file in snapshot.files.values()],
        "usedStorage": manifest.size,
    }


def tags(snapshot: Snapshot) -> list[str]:
    """What a repository can be filtered by: also its licence, and its base by name and by the weights' digest."""
    card, base = _card(snapshot), snapshot.manifest.base
    found = [LIBRARY, "safetensors", TASK, *card.get("tags", [])]
    found += [f"license:{card['license']}"] if "license" in card else []
    if "base_model" in card:
        found += [f"base_model:{card['base_model']}", f"base_model:adapter:{card['base_model']}"]
    return [*dict.fromkeys([*found, f"base:{base.weights}"])]


def entry(file: File) -> dict[str, Any]:
    """A file of a tree."""
    lfs = {"oid": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
    return {"type": "file", "path": file.path, "size": file.size, "oid": file.oid, "lfs": lfs}


def headers(file: File, commit: str) -> dict[str, str]:
    """Those of an answer that has a file, or says where it is."""
    etag = f'"{file.sha256}"'
    return {
        "etag": etag,
        "x-linked-etag": etag,
        "x-linked-size": str(file.size),
        "x-repo-commit": commit,
        "access-control-expose-headers": "etag, x-linked-etag, x-linked-size, x-repo-commit",
        "content-disposition": f"attachment; filename*=UTF-8''{file.path}; filename=\"{file.path}\";",
    }


def refs(repository: Repository) -> dict[str, Any]:
    """What moves, as branches: `main` and the aliases. What does not, as tags: the versions."""
    return {
        "branches": [_ref("heads", name, commit_of(record.digest)) for name, record in repository.branches().items()],
        "tags": [_ref("tags", name, commit_of(record.digest)) for name, record in repository.tags().items()],
        "converts": [],
        "pullRequests": [],
    }


def commits(repository: Repository, last: int) -> list[dict[str, Any]]:
    """A version and those before it, newest first; those that were withdrawn are left out."""
    author = {"user": repository.head.adapter.partition("/")[0]}
    return [
        {
            "id": commit_of(record.digest),
            "title": f"Version {record.version}",
            "message": record.digest,
            "date": _moment(record.created_at),
            "authors": [author],
        }
        for record in reversed(repository.commits())
        if record.version <= last
    ]


def _sibling(file: File, *, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": file.path}
    lfs = {"sha256": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
    return {"rfilename": file.path, "size": file.size, "blobId": file.oid, "lfs": lfs}


def _ref(kind: str, name: str, commit: str) -> dict[str, str]:
    return {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit}


def _card(snapshot: Snapshot) -> dict[str, Any]:
    match = _FRONT_MATTER.match(snapshot.files[CARD].data.decode())
    assert match is not None  # every generated card has it
    return dict(yaml.safe_load(match[1]))


def _peft(snapshot: Snapshot) -> dict[str, Any]:
    settings = json.loads(snapshot.settings)
    kept = {name: settings.get(name) for name in ("base_model_name_or_path", "task_type")}
    return {name: value for name, value in kept.items() if isinstance(value, str)}


def _moment(at: str) -> str:
    """A moment to the millisecond, as clients parse it."""
    return f"{at[:23]}Z"
