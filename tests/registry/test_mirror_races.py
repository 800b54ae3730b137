"""Mirrors beside others who write: recalls in the source, collections in the target, and another mirror."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import Fingerprint, Recalled, Registry, fault, open_store
from swapmeet_registry.copies.bundle import export_bundle, import_bundle
from swapmeet_registry.copies.mirror import Mirrored, mirror
from swapmeet_registry.signing.keys import PrivateKey, make_keys
from swapmeet_registry.store_backend import StoreBackend
from swapmeet_registry.stores import Store
from swapmeet_registry.upkeep.collection import collect
from swapmeet_registry.upkeep.fsck import fsck

NAME, OTHER = "acme/legal", "zeta/other"


@pytest.fixture
def source(make_adapter: Callable[..., Path], tmp_path: Path, base: Fingerprint) -> Registry:
    registry = Registry((tmp_path / "source").as_uri())
    for seed in range(3):
        registry.push(make_adapter(tmp_path / f"adapter-{seed}", seed), NAME, base=base, alias="prod")
    registry.push(tmp_path / "adapter-0", OTHER, base=base)
    registry.sign(NAME, PrivateKey(make_keys(tmp_path / "pair")[0]))
    return registry


def at_step(number: int, act: Callable[[], object]) -> Callable[[str], None]:
    """A hook that does something once, when a mirror is at its step with this number."""
    left = [number]

    def hook(step: str) -> None:
        left[0] -= 1
        if not left[0]:
            act()

    return hook


@pytest.mark.parametrize("step", [1, 8, 20, 40])
def test_a_recall_in_the_source_meanwhile(
    step: int, source: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target gets the head that was read first, whole; the next mirror brings the recall, and announces it."""
    target = Registry((tmp_path / "target").as_uri())
    with monkeypatch.context() as patch:
        patch.setattr(fault, "hook", at_step(step, lambda: source.recall(f"{NAME}:3", "leaks")))
        assert mirror(source.backend, target.backend).refused == {}
    assert fsck(target.backend.url, True).sound
    assert len(target.head(NAME).versions) == 3
    mirror(source.backend, target.backend)
    with pytest.raises(Recalled, match="leaks"):
        target.resolve(f"{NAME}:3")
    assert target.head(NAME) == source.head(NAME)
    assert [notice.version for notice in target.recalls.after().notices] in ([3], [])
    assert mirror(source.backend, target.backend) == Mirrored(2, 0, 0, {})


@pytest.mark.slow
def test_a_collection_of_garbage_in_the_target_at_every_step(
    source: Registry, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of objects without age: only intents keep what is copied."""
    target, running = Registry(store_url), [False]

    def tidy(step: str) -> None:
        if not running[0] and step in ("push.spared", "push.blobs", "push.manifest", "push.intent_ended"):
            running[0] = True
            collect(open_store(store_url), age=0, grace=0)
            running[0] = False

    with monkeypatch.context() as patch:
        patch.setattr(fault, "hook", tidy)
        assert mirror(source.backend, target.backend).refused == {}
    assert fsck(store_url, True).problems == []
    for name in (NAME, OTHER):
        assert target.head(name) == source.head(name)
    version = target.verify(NAME)
    assert target.backend.signers(version) == source.backend.signers(version)


def test_two_mirrors_and_an_import_at_once(source: Registry, url: str, tmp_path: Path) -> None:
    export_bundle(source, [NAME, OTHER], tmp_path / "bundle.tar")
    with ThreadPoolExecutor(3) as pool:
        mirrors = [pool.submit(mirror, source.backend, Registry(url).backend) for _ in range(2)]
        imported = pool.submit(import_bundle, Registry(url), tmp_path / "bundle.tar")
        assert [each.result().refused for each in mirrors] == [{}, {}]
        assert len(imported.result()) == 4
    target = Registry(url)
    for name in (NAME, OTHER):
        assert target.head(name) == source.head(name)
    assert fsck(url, True).sound
    assert list(target.backend.signed()) == list(source.backend.signed())


class Counting:
    """A store that counts who writes to it."""

    def __init__(self, store: Store) -> None:
        self.store, self.writes = store, list[str]()

    def __getattr__(self, name: str) -> Any:
        if name in ("put", "swap", "delete", "sweep"):
            self.writes.append(name)
        return getattr(self.store, name)


def test_once_more_writes_nothing(source: Registry, store_url: str, tmp_path: Path) -> None:
    counting = Counting(open_store(store_url))
    target = StoreBackend(counting)  # type: ignore[arg-type]
    export_bundle(source, [NAME, f"{OTHER}:1"], tmp_path / "bundle.tar")
    mirror(source.backend, target)
    assert counting.writes
    counting.writes.clear()
    assert mirror(source.backend, target) == Mirrored(2, 0, 0, {})
    registry = Registry(counting)  # type: ignore[arg-type]
    assert not any(each.new for each in import_bundle(registry, tmp_path / "bundle.tar"))
    assert counting.writes == []


def test_once_more_commits_nothing_to_a_hub(source: Registry, hub: Any) -> None:
    target = Registry("hf://lab-1")
    mirror(source.backend, target.backend)
    before = {name: target.backend.head(_parsed(name)) for name in target.names()}
    assert mirror(source.backend, target.backend) == Mirrored(2, 0, 0, {})
    assert {name: target.backend.head(_parsed(name)) for name in target.names()} == before, "the tag is the commit"


def _parsed(name: str) -> Any:
    from swapmeet_registry import AdapterName

    return AdapterName.parse(name)
