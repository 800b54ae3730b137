"""What a check of a registry finds, and mends: on a local folder, on S3 and on a Hub."""

import gc
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import AdapterName, Fingerprint, Refused, Registry, Version, canonical, open_store
from swapmeet_registry.head import Head, Move, Record
from swapmeet_registry.heads import Heads
from swapmeet_registry.store_backend import StoreBackend
from swapmeet_registry.upkeep.fsck import Findings, fsck

NAME = "acme/legal"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def versions(url: str, make_adapter: Any, tmp_path: Path, base: Fingerprint) -> list[Version]:
    """Three versions of one name and one of another, with files in common."""
    registry = Registry(url)
    folders = [make_adapter(tmp_path / f"adapter-{seed}", seed) for seed in range(3)]
    made = [registry.push(folder, NAME, base=base, alias="prod") for folder in folders]
    return [*made, registry.push(folders[0], "other/copy", base=base)]


def whats(found: Findings) -> str:
    return "\n".join(problem.what for problem in found.problems)


@pytest.mark.parametrize("deep", [False, True])
def test_a_sound_registry(url: str, versions: list[Version], deep: bool) -> None:
    found = fsck(url, deep)
    assert (found.problems, found.sound) == ([], True)
    assert (found.heads, found.versions) == (2, 4)
    assert found.files == 5, "three weights, one configuration, one README"
    assert (found.orphans, found.intents, found.partials) == (0, 0, 0)


def test_an_empty_registry(url: str) -> None:
    assert fsck(url, True) == Findings()


def test_damaged_files(url: str, versions: list[Version], tampering: Any) -> None:
    first, second, third, _ = versions
    registry = Registry(url)
    weights = {version: (b"".join(pieces(registry, version))) for version in (first, second)}
    tampering.file(second, WEIGHTS, weights[second][:-1])
    tampering.file(third, WEIGHTS, None)
    shallow = fsck(url)
    assert shallow.count == 2, whats(shallow)
    assert str(second) in whats(shallow)
    assert str(third) in whats(shallow)
    flipped = bytearray(weights[second])
    flipped[-1] ^= 1
    tampering.file(second, WEIGHTS, bytes(flipped))
    assert str(second) in whats(fsck(url, True))


def pieces(registry: Registry, version: Version) -> Any:
    (file,) = [file for file in registry.manifest(version).files if file.path == WEIGHTS]
    return registry.backend.blob(version, file) or ()


def test_damaged_heads_and_manifests(url: str, versions: list[Version], tampering: Any) -> None:
    tampering.manifest(versions[1], b"{}")
    tampering.head("other/copy", b"{")
    found = fsck(url)
    assert (found.count, found.sound) == (2, False)
    assert f"The manifest of {versions[1]}" in whats(found)
    assert "not JSON" in whats(found)


def test_heads_that_contradict_themselves(url: str, versions: list[Version], tampering: Any) -> None:
    head = Registry(url).head(NAME)
    at = head.versions[0].created_at
    bad = head.model_copy(
        update={
            "versions": (head.versions[0], head.versions[2], head.versions[2]),
            "aliases": {"prod": 3, "test": 9},
            "history": (*head.history, Move(alias="prod", version=1, at=at)),
            "visibility": "shared",
        }
    )
    tampering.head(NAME, bad.encode())
    told = whats(fsck(url))
    for mistake in ("not numbered", "same digest", "test points to version 9", "their history", "0 tenants"):
        assert mistake in told


def test_what_was_deleted_need_not_be_there(url: str, versions: list[Version], tampering: Any) -> None:
    Registry(url).delete(str(versions[2]), "gone")
    tampering.file(versions[2], WEIGHTS, None)
    found = fsck(url, True)
    assert (found.problems, found.versions) == ([], 3)


def test_leftovers_are_counted(store_url: str, make_adapter: Any, tmp_path: Path, base: Fingerprint) -> None:
    registry = Registry(store_url)
    registry.push(make_adapter(tmp_path / "adapter"), NAME, base=base)
    store = open_store(store_url)
    for key in ("blobs/sha256/" + "0" * 64, "manifests/sha256/" + "1" * 64, "reports/sha256/" + "2" * 64 + ".json"):
        store.put(key, b"abc", canonical.digest(b"abc")[7:])
    store.put("heads/NOT/A-NAME.json", b"{}", canonical.digest(b"{}")[7:])
    found = fsck(store_url)
    assert (found.orphans, found.orphan_bytes, found.count) == (3, 9, 1)
    assert "is no head. Move it away." in whats(found)


def test_half_written_files_go_once_they_are_old(tmp_path: Path, make_adapter: Any, base: Fingerprint) -> None:
    url = (tmp_path / "registry").as_uri()
    Registry(url).push(make_adapter(tmp_path / "adapter"), NAME, base=base)
    old, young = (tmp_path / "registry" / "blobs" / "sha256" / f".{name}.partial" for name in ("old", "young"))
    for partial in (old, young):
        partial.write_bytes(b"half")
    os.utime(old, (time.time() - 10**6,) * 2)
    assert fsck(url).partials == 1
    assert old.exists()
    found = fsck(url, repair=True)
    assert (found.partials, found.sound) == (1, True)
    assert (old.exists(), young.exists()) == (False, True)


def test_what_is_missing_comes_from_a_copy(
    store_url: str, make_adapter: Any, tmp_path: Path, base: Fingerprint
) -> None:
    registry = Registry(store_url)
    versions = [registry.push(make_adapter(tmp_path / f"a-{seed}", seed), NAME, base=base) for seed in range(3)]
    copy = open_store((tmp_path / "copy").as_uri())
    store = open_store(store_url)
    for key in store.list(""):
        data = (store.get(key) or pytest.fail(key)).data
        copy.put(key, data, canonical.digest(data)[7:])
    (lost,) = [file for file in registry.manifest(versions[1]).files if file.path == WEIGHTS]
    (only,) = [file for file in registry.manifest(versions[2]).files if file.path == WEIGHTS]
    store.delete(f"manifests/{versions[0].digest.replace(':', '/')}")
    store.put(f"blobs/sha256/{lost.sha256}", b"x" * lost.size, canonical.digest(b"x" * lost.size)[7:])
    for where in (store, copy):
        where.delete(f"blobs/sha256/{only.sha256}")
    with pytest.raises(Refused, match="to repair from"):
        fsck(store_url, True, source=copy)
    found = fsck(store_url, True, repair=True, source=copy)
    assert (found.count, found.mended, found.sound) == (3, 2, False)
    for version in versions[:2]:
        registry.verify(version.pinned)
    (left,) = fsck(store_url, True).problems
    assert str(versions[2]) in left.what


def test_a_version_deleted_while_it_was_looked_for_is_no_problem(
    store_url: str, make_adapter: Any, tmp_path: Path, base: Fingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(store_url)
    version = registry.push(make_adapter(tmp_path / "adapter"), NAME, base=base)
    get = Heads.get

    def then_delete(self: Heads, name: AdapterName) -> Head:
        head = get(self, name)
        if head.versions[0].deleted is None:
            registry._heads.change(name, lambda head: head.withdraw(1, "deleted", "gone", version.created_at))
            assert isinstance(registry.backend, StoreBackend)
            for key in [*registry.backend.store.list("blobs/"), *registry.backend.store.list("manifests/")]:
                registry.backend.store.delete(key)
        return head

    monkeypatch.setattr(Heads, "get", then_delete)
    found = fsck(store_url, True)
    assert (found.problems, found.versions) == ([], 0)


def test_a_file_of_two_versions_is_looked_for_as_long_as_one_is_left(
    store_url: str, make_adapter: Any, tmp_path: Path, base: Fingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, folder = Registry(store_url), make_adapter(tmp_path / "adapter")
    for name in ("acme/first", "acme/second"):
        registry.push(folder, name, base=base)
    store, scan, gone = open_store(store_url), type(open_store(store_url)).scan, ["acme/first"]

    def then_delete(self: Any, prefix: str) -> Any:
        """Once the heads were read: versions go, and the files that are collected then."""
        if prefix == "blobs/" and gone:
            registry.delete(f"{gone.pop()}:1", "gone")
            for key in list(store.list("blobs/")):
                store.delete(key)
        return scan(self, prefix)

    monkeypatch.setattr(type(store), "scan", then_delete)
    found = fsck(store_url)
    assert len(found.problems) == len(registry.manifest(registry.show("acme/second").versions[0]).files)
    assert all("acme/second:1" in problem.what for problem in found.problems), "the first needs nothing any more"
    registry.delete("acme/second:1", "gone")
    assert fsck(store_url).problems == []


def test_memory_does_not_grow_with_the_registry(
    tmp_path: Path, make_adapter: Callable[..., Path], base: Fingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swapmeet_registry.upkeep.fsck.BATCH", 4)
    registry = Registry((tmp_path / "registry").as_uri())
    first = registry.push(make_adapter(tmp_path / "adapter"), "acme/a0", base=base)
    assert isinstance(registry.backend, StoreBackend)
    store, manifest = registry.backend.store, registry.manifest(first)

    def grow(start: int, names: int, each: int) -> None:
        for number in range(start, start + names):
            records = []
            for version in range(each):
                copy = manifest.model_copy(update={"adapter": f"acme/a{number}", "run": f"{number}-{version}"})
                data = copy.encode()
                store.put(f"manifests/{copy.digest.replace(':', '/')}", data, copy.digest[7:])
                records.append(
                    Record(version=version + 1, digest=copy.digest, created_at=first.created_at, publish=f"p{version}")
                )
            head = Head(adapter=f"acme/a{number}", versions=tuple(records))
            store.swap(f"heads/acme/a{number}.json", head.encode(), None)

    def peak() -> int:
        gc.collect()
        tracemalloc.start()
        try:
            assert fsck(store).sound
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    grow(1, 5, 30)
    small = peak()
    grow(6, 10, 30)
    assert (peak() - small) / 300 < 500, "bytes for each version: a listing's keys, and nothing else"
