"""How many requests a call sends to S3: they are most of what a small adapter costs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import Fingerprint, Recalled, Refused, Registry, StoreError
from swapmeet_registry.copies.present import present
from swapmeet_registry.stores.s3 import S3Store

Count = Callable[[Callable[[], object]], list[str]]
NAME = "acme/legal"


@pytest.fixture
def registry(bucket: str) -> Registry:
    return Registry(S3Store(bucket))


@pytest.fixture
def count(registry: Registry) -> Count:
    """The requests of a call: `METHOD FOLDER`."""
    sent: list[str] = []
    store: Any = registry.backend.store  # type: ignore[attr-defined]

    def note(request: Any, **_: Any) -> None:
        sent.append(f"{request.method} {request.url.partition('?')[0].split('/')[4]}")

    for client in (store.bucket.client, store.bucket.client_without_retries):
        client.meta.events.register("before-send.s3", note)

    def counted(call: Callable[[], object]) -> list[str]:
        sent.clear()
        call()
        return sorted(sent)

    return counted


def test_requests(registry: Registry, count: Count, make_adapter: Any, tmp_path: Path, base: Fingerprint) -> None:
    folder = make_adapter(tmp_path / "adapter")
    registry.push(folder, "acme/other", base=base)
    assert count(lambda: registry.push(folder, NAME, base=base, alias="prod")) == [
        "DELETE intents", "GET gc", "GET heads", *["PUT blobs"] * len(registry.manifest(registry.resolve(NAME)).files),
        "PUT heads", "PUT intents", "PUT manifests", "PUT reports",
    ]  # fmt: skip
    version = registry.resolve(NAME)
    pulled = tmp_path / "pulled"
    blobs = ["GET blobs"] * len(registry.manifest(version).files)
    assert count(lambda: registry.pull(NAME, pulled)) == [*blobs, "GET heads", "GET manifests"]
    assert count(lambda: registry.pull(f"{NAME}:prod", pulled)) == ["GET heads"]
    assert count(lambda: registry.pull(version, pulled)) == ["GET heads"]
    assert count(lambda: registry.resolve(NAME)) == ["GET heads"]
    assert count(lambda: registry.tag(NAME, "prod", f"{NAME}:1")) == ["GET heads"]
    assert count(lambda: registry.tag(NAME, "next", f"{NAME}:1")) == ["GET heads", "PUT heads"]


def test_a_recall_is_seen_though_all_is_there(
    registry: Registry, make_adapter: Any, tmp_path: Path, base: Fingerprint
) -> None:
    version = registry.push(make_adapter(tmp_path / "adapter"), NAME, base=base)
    registry.pull(version, tmp_path / "pulled")
    registry.recall(f"{NAME}:1", "leaks")
    with pytest.raises(Recalled, match="leaks"):
        registry.pull(version, tmp_path / "pulled")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def reformat(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: flip(folder / "adapter_model.safetensors"),
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        lambda folder: reformat(folder / "adapter_config.json"),
        lambda folder: reformat(folder / "swapmeet.json"),
        lambda folder: (folder / "more.txt").write_text("x"),
        lambda folder: (folder / ".DS_Store").write_text("x"),
        lambda folder: (folder / "ein Wort.txt").write_text("x"),
        lambda folder: (folder / "more").mkdir(),
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        lambda folder: (folder / "swapmeet.json").unlink(),
    ],
)
def test_a_folder_that_was_changed_is_not_taken_for_the_version(
    tmp_path: Path, make_adapter: Any, base: Fingerprint, change: Callable[[Path], object]
) -> None:
    registry = Registry((tmp_path / "registry").as_uri())
    version = registry.push(make_adapter(tmp_path / "adapter"), NAME, base=base)
    registry.pull(version, tmp_path / "pulled")
    assert present(version, tmp_path / "pulled") == registry.manifest(version)
    change(tmp_path / "pulled")
    assert present(version, tmp_path / "pulled") is None
    with pytest.raises(Refused, match="holds something other than"):
        registry.pull(version, tmp_path / "pulled")


def test_a_folder_that_can_not_be_is_said_so(tmp_path: Path, make_adapter: Any, base: Fingerprint) -> None:
    registry = Registry((tmp_path / "registry").as_uri())
    version = registry.push(make_adapter(tmp_path / "adapter"), NAME, base=base)
    with pytest.raises(StoreError, match="File name too long"):
        registry.pull(version, tmp_path / ("x" * 300))


def test_another_version_of_the_same_bytes_is_another(tmp_path: Path, make_adapter: Any, base: Fingerprint) -> None:
    registry = Registry((tmp_path / "registry").as_uri())
    folder = make_adapter(tmp_path / "adapter")
    first, second = (registry.push(folder, NAME, base=base) for _ in range(2))
    registry.pull(first, tmp_path / "pulled")
    assert present(second, tmp_path / "pulled") is not None  # which differ in their names only: the folders are equal
    shutil.rmtree(tmp_path / "pulled")
    assert present(second, tmp_path / "pulled") is None
