"""A check of registries that were broken on purpose, or are being written meanwhile; each finding says what to do."""

import re
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import Fingerprint, Registry, canonical, open_store
from swapmeet_registry.copies.mirror import mirror
from swapmeet_registry.store_backend import StoreBackend
from swapmeet_registry.stores import Store
from swapmeet_registry.upkeep.collection import collect
from swapmeet_registry.upkeep.fsck import Findings, fsck
from swapmeet_registry.upkeep.intents import LIFETIME

NAME, OTHER = "acme/legal", "zeta/other"
WHAT_TO_DO = re.compile(r"[.,] (Restore|Publish|Delete|Move|Remove|Copy|Nobody can publish\. Remove|.* Remove) ?")


@pytest.fixture
def registry(store_url: str, make_adapter: Callable[..., Path], tmp_path: Path, base: Fingerprint) -> Registry:
    registry = Registry(store_url)
    for seed in range(2):
        registry.push(make_adapter(tmp_path / f"adapter-{seed}", seed), NAME, base=base, alias="prod")
    registry.push(tmp_path / "adapter-0", OTHER, base=base)
    return registry


def store_of(registry: Registry) -> Store:
    assert isinstance(registry.backend, StoreBackend)
    return registry.backend.store


def put(store: Store, key: str, data: bytes) -> None:
    store.put(key, data, canonical.sha256(data))


def told(found: Findings, *words: str) -> bool:
    """Whether just these problems were found, each with what to do."""
    whats = [problem.what for problem in found.problems]
    assert len(whats) == len(words), whats
    assert all(WHAT_TO_DO.search(what) for what in whats), whats
    return all(any(word in what for what in whats) for word in words)


def test_documents_that_stop_everybody_are_found(registry: Registry) -> None:
    store = store_of(registry)
    put(store, "gc/state.json", b"{}")
    put(store, "intents/1.json", b"junk")
    put(store, "recalls/feed.json", b"[]")
    put(store, "recalls/servers/one.json", b"")
    found = fsck(store)
    assert told(found, "gc/state.json", "intents/1.json", "recalls/feed.json", "recalls/servers/one.json")
    for problem in found.problems:
        store.delete(problem.what.split()[0])
    assert fsck(store).sound


def test_manifests_where_they_do_not_belong(registry: Registry) -> None:
    store = store_of(registry)
    first, second = registry.find(f"{NAME}:1"), registry.find(f"{NAME}:2")
    put(store, f"manifests/{first.digest.replace(':', '/')}", registry.backend.manifest(second) or b"")
    head = registry.head(OTHER)
    foreign = head.versions[0].model_copy(update={"digest": second.digest})
    put(store, f"heads/{OTHER}.json", head.model_copy(update={"versions": (foreign,)}).encode())
    assert told(fsck(store), f"The manifest of {first} should have", f"The manifest of {OTHER}:1 is one of {NAME}")


def test_heads_that_are_gone_or_damaged(registry: Registry) -> None:
    """What they named must not look as if it were garbage only."""
    store = store_of(registry)
    kept = store.get(f"heads/{NAME}.json")
    assert kept is not None
    put(store, f"heads/{NAME}.json", b"")
    assert told(fsck(store), f"heads/{NAME}.json")
    store.delete(f"heads/{NAME}.json")
    found = fsck(store)
    assert (found.sound, found.headless, found.orphans) == (True, [NAME], 5)
    put(store, f"heads/{NAME}.json", kept.data)
    assert fsck(store).headless == []


@pytest.mark.parametrize("what", ["folder", "link"])
def test_what_is_no_file_any_more(what: str, make_adapter: Any, tmp_path: Path, base: Fingerprint) -> None:
    root = tmp_path / "registry"
    registry = Registry(root.as_uri())
    version = registry.push(make_adapter(tmp_path / "adapter"), NAME, base=base)
    weights = registry.manifest(version).files[-1]
    other = registry.push(make_adapter(tmp_path / "other", 1), OTHER, base=base)

    def replace(path: Path) -> None:
        path.unlink()
        _ = path.mkdir() if what == "folder" else path.symlink_to(tmp_path / "nowhere")

    replace(root / "blobs" / "sha256" / weights.sha256)
    replace(root / "manifests" / "sha256" / other.digest[7:])
    for deep in (False, True):
        found = fsck(root.as_uri(), deep)
        assert told(found, f"{weights.path} of {version}", f"The manifest of {other}")
    replace(root / "heads" / f"{NAME}.json")
    assert fsck(root.as_uri()).headless == [NAME]


def test_an_alias_of_a_deleted_version_is_no_mistake(registry: Registry) -> None:
    """Who deletes a version leaves its aliases, so that whoever uses one is told why."""
    registry.delete(f"{NAME}:2", "wrong")
    assert registry.head(NAME).aliases == {"prod": 2}
    assert fsck(store_of(registry), True).sound
    with pytest.raises(LookupError, match="wrong"):
        registry.resolve(f"{NAME}:prod")


def test_reports_and_signatures_that_are_lost_or_junk_are_no_damage(registry: Registry) -> None:
    store, version = store_of(registry), registry.find(f"{NAME}:1")
    before = registry.report(version)
    for key in list(store.list("reports/")):
        store.delete(key)
    put(store, f"signatures/{version.digest.replace(':', '/')}/{'a' * 64}.json", b"junk")
    assert fsck(store, True).sound
    assert registry.report(version) == before


def test_everything_that_a_mirror_has_is_mended(registry: Registry, tmp_path: Path) -> None:
    store = store_of(registry)
    copy = Registry((tmp_path / "copy").as_uri())
    mirror(registry.backend, copy.backend)
    keys = [key for folder in ("blobs/", "manifests/") for key in store.list(folder)]
    for number, key in enumerate(keys):
        if number % 3 == 0:
            store.delete(key)
        else:
            size = store.size(key) or 0
            put(store, key, b"x" * (size - number % 3 + 1))
    found = fsck(store, True, repair=True, source=copy.backend.url)
    assert (found.count, found.mended) == (len(keys), len(keys))
    assert fsck(store, True).problems == []
    for name in (f"{NAME}:1", f"{NAME}:2", OTHER):
        assert registry.verify(name) == copy.resolve(name)


def test_ten_thousand_orphans_take_no_more_memory_than_their_listing(
    make_adapter: Any, tmp_path: Path, base: Fingerprint
) -> None:
    registry = Registry((tmp_path / "registry").as_uri())
    registry.push(make_adapter(tmp_path / "adapter"), NAME, base=base)
    for number in range(10_000):
        folder = tmp_path / "registry" / ("blobs" if number % 2 else "manifests") / "sha256"
        (folder / f"{number:064x}").write_bytes(b"x")
    fsck(store_of(registry))  # once unmeasured: the interpreter's own table of names may double at any of them
    tracemalloc.start()
    found = fsck(store_of(registry))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.orphans, found.count) == (10_000, 0)
    assert peak < 10_000 * 500


def test_stale_intents_are_counted(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(registry)
    put(store, "intents/1.json", b'{"keys":["blobs/sha256/x"],"schema":"swapmeet.intent/1"}')
    assert fsck(store).intents == 0
    now = time.time()
    monkeypatch.setattr("swapmeet_registry.upkeep.fsck.time.time", lambda: now + LIFETIME + 60)
    found = fsck(store)
    assert (found.intents, found.sound) == (1, True)


@pytest.mark.slow
def test_nothing_is_found_beside_publishers_who_delete_and_a_collection(
    store_url: str, make_adapter: Any, tmp_path: Path, base: Fingerprint
) -> None:
    folders = [make_adapter(tmp_path / f"adapter-{seed}", seed) for seed in range(3)]
    stop = threading.Event()

    def publish(tenant: str) -> None:
        registry = Registry(store_url)
        for turn in range(4):
            version = registry.push(folders[turn % 3], f"{tenant}/legal", base=base)
            if turn % 2:
                registry.delete(str(version), "wrong")

    def tidy() -> None:
        while not stop.is_set():
            collect(open_store(store_url), age=0, grace=0)

    with ThreadPoolExecutor(4) as pool:
        publishers = [pool.submit(publish, tenant) for tenant in ("acme", "zeta")]
        tidier = pool.submit(tidy)
        try:
            while not all(each.done() for each in publishers):
                assert fsck(store_url, True).problems == []
        finally:
            stop.set()
        for each in (*publishers, tidier):
            each.result()
    assert fsck(store_url, True).sound
    assert all(Registry(store_url).verify(f"{tenant}/legal") for tenant in ("acme", "zeta"))
