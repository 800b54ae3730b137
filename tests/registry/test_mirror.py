"""Copies of registries: between all kinds of places, killed at every step, into targets with a life of their own."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swapmeet_registry import (
    AdapterName,
    Fingerprint,
    InvalidName,
    NotFound,
    Recalled,
    Registry,
    StoredFile,
    canonical,
    fault,
)
from swapmeet_registry.backend import Staged
from swapmeet_registry.copies.mirror import Mirrored, mirror
from swapmeet_registry.heads import Heads
from swapmeet_registry.manifest import Manifest
from swapmeet_registry.publishing import Publishing
from swapmeet_registry.store_backend import StoreBackend, manifest_key
from swapmeet_registry.upkeep.fsck import fsck

NAME = "acme/legal"


@pytest.fixture
def fill(make_adapter: Any, tmp_path: Path, base: Fingerprint) -> Callable[[Registry], Registry]:
    """Versions that were yanked, recalled and deleted, aliases that moved, and another name."""

    def run(registry: Registry) -> Registry:
        for seed in range(5):
            folder = make_adapter(tmp_path / f"adapter-{seed}", seed)
            registry.push(folder, NAME, base=base, alias="prod" if seed < 3 else None, run=f"run-{seed}")
        registry.yank(f"{NAME}:1", "old")
        registry.recall(f"{NAME}:2", "leaks")
        registry.delete(f"{NAME}:4", "wrong")
        registry.tag(NAME, "prod", "5", by="ana")
        registry.share(NAME, "shared", ["zeta"])
        registry.push(tmp_path / "adapter-0", "zeta/other", base=base)
        return registry

    return run


@pytest.fixture
def source(fill: Callable[[Registry], Registry], tmp_path: Path) -> Registry:
    return fill(Registry((tmp_path / "source").as_uri()))


def same(source: Registry, target: Registry) -> bool:
    """The same heads, byte for byte, and the same manifests and files."""
    assert source.names() == target.names()
    for name in source.names():
        assert source.head(name) == target.head(name)
        for version in source.show(name).versions:
            if version.deleted is None:
                assert source.backend.manifest(version) == target.backend.manifest(version)
    return fsck(target.backend.url, True).sound


@pytest.mark.parametrize("url", ["local", "s3", "other-s3", "hub"], indirect=True)
def test_any_place_from_any_other(source: Registry, url: str, tmp_path: Path) -> None:
    target = Registry(url)
    done = mirror(source.backend, target.backend)
    assert (done.names, done.versions, done.refused) == (2, 5, {})
    assert same(source, target)
    with pytest.raises(Recalled, match="leaks"):
        target.resolve(f"{NAME}:2")
    assert target.pull(NAME, tmp_path / "pulled").digest == source.resolve(NAME).digest
    assert mirror(source.backend, target.backend) == Mirrored(2, 0, 0, {})
    back = Registry((tmp_path / "back").as_uri())
    assert mirror(target.backend, back.backend).versions == 5
    assert same(source, back)


def test_what_comes_later_follows(
    source: Registry, store_url: str, make_adapter: Any, tmp_path: Path, base: Fingerprint
) -> None:
    target = Registry(store_url)
    mirror(source.backend, target.backend, [NAME])
    assert target.names() == [NAME]
    source.push(make_adapter(tmp_path / "new", 9), NAME, base=base, alias="test")
    source.recall(f"{NAME}:5", "leaks, too")
    source.share(NAME, "public")
    told: list[str] = []
    assert mirror(source.backend, target.backend, tell=told.append).versions == 2
    assert told == [f"{NAME}: 1 versions copied", "zeta/other: 1 versions copied"]
    assert same(source, target)
    (notice,) = target.recalls.after().notices
    assert (notice.version, notice.reason) == (5, "leaks, too"), "servers of the target are told"


def test_a_target_with_a_life_of_its_own_is_left_alone(
    source: Registry, make_adapter: Any, tmp_path: Path, base: Fingerprint
) -> None:
    other = Registry((tmp_path / "other").as_uri())
    other.push(make_adapter(tmp_path / "mine", 9), NAME, base=base)
    ahead = Registry((tmp_path / "ahead").as_uri())
    mirror(source.backend, ahead.backend)
    ahead.push(tmp_path / "mine", NAME, base=base)
    moved = Registry((tmp_path / "moved").as_uri())
    mirror(source.backend, moved.backend)
    moved.tag(NAME, "mine", "5")
    for target, why in ((other, f"another {NAME}:1"), (ahead, f"has {NAME}:6"), (moved, "were moved")):
        before = target.head(NAME)
        done = mirror(source.backend, target.backend)
        assert list(done.refused) == [NAME]
        assert why in done.refused[NAME]
        assert target.head(NAME) == before
        assert target.resolve("zeta/other").digest == source.resolve("zeta/other").digest


def test_what_was_recalled_in_the_target_stays_so(source: Registry, tmp_path: Path) -> None:
    target = Registry((tmp_path / "target").as_uri())
    mirror(source.backend, target.backend)
    target.recall(f"{NAME}:5", "ours")
    source.yank(f"{NAME}:5", "theirs")
    assert mirror(source.backend, target.backend).refused == {}
    record = target.head(NAME).versions[4]
    assert (record.recalled, record.yanked) == ("ours", "theirs")


def test_names_that_are_not_there_are_all_told(source: Registry, tmp_path: Path) -> None:
    target = Registry((tmp_path / "target").as_uri())
    with pytest.raises(NotFound, match="no acme/a, acme/b"):
        mirror(source.backend, target.backend, [NAME, "acme/a", "acme/b"])
    assert target.names() == []


def test_a_damaged_source_spoils_nothing(source: Registry, tmp_path: Path) -> None:
    assert isinstance(source.backend, StoreBackend)
    (weights,) = [
        file for file in source.manifest(source.find(f"{NAME}:3")).files if file.path.endswith(".safetensors")
    ]
    bad = b"x" * weights.size
    source.backend.store.put(f"blobs/sha256/{weights.sha256}", bad, canonical.digest(bad)[7:])
    target = Registry((tmp_path / "target").as_uri())
    done = mirror(source.backend, target.backend)
    assert list(done.refused) == [NAME]
    assert len(target.head(NAME).versions) == 2
    assert fsck(target.backend.url, True).sound


def test_manifests_go_over_byte_for_byte(source: Registry, tmp_path: Path) -> None:
    """One that another program wrote, in another form of JSON."""
    assert isinstance(source.backend, StoreBackend)
    version = source.resolve("zeta/other")
    data = b" " + (source.backend.manifest(version) or b"")
    digest = canonical.digest(data)
    source.backend.store.put(f"manifests/{digest.replace(':', '/')}", data, digest[7:])
    head = source.head("zeta/other")
    stored = source.backend.store.get("heads/zeta/other.json")
    assert stored is not None
    changed = head.model_copy(update={"versions": (head.versions[0].model_copy(update={"digest": digest}),)})
    source.backend.store.swap("heads/zeta/other.json", changed.encode(), stored.etag)
    target = Registry((tmp_path / "target").as_uri())
    assert mirror(source.backend, target.backend).refused == {}
    assert target.resolve("zeta/other").digest == digest
    assert same(source, target)
    assert target.manifest(target.resolve("zeta/other")).digest == digest
    assert Manifest.decode(data, "it").encode() == data


def test_a_first_version_that_was_deleted(url: str, make_adapter: Any, tmp_path: Path, base: Fingerprint) -> None:
    source, target = Registry((tmp_path / "source").as_uri()), Registry(url)
    for seed in range(2):
        source.push(make_adapter(tmp_path / f"adapter-{seed}", seed), NAME, base=base)
    source.delete(f"{NAME}:1", "wrong")
    assert mirror(source.backend, target.backend).refused == {}
    assert same(source, target)


class Killed(BaseException):
    """Nothing may catch it but the test."""


def kill_at(number: int) -> Callable[[str], None]:
    left = [number]

    def hook(step: str) -> None:
        left[0] -= 1
        if not left[0]:
            raise Killed(step)

    return hook


def test_killed_at_any_step(source: Registry, store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed again and again, each time a step later: whatever is seen is whole, and the end is reached."""
    target, number = Registry(store_url), 0
    seen: list[int] = []
    while True:
        number += 1
        with monkeypatch.context() as patch:
            patch.setattr(fault, "hook", kill_at(number))
            try:
                mirror(source.backend, target.backend, [NAME])
                break
            except Killed:
                pass
        known = len(target.head(NAME).versions) if NAME in target.names() else 0
        assert fsck(store_url, True).problems == []
        seen.append(known)
    assert seen == sorted(seen)
    assert seen[0] == 0
    assert target.head(NAME) == source.head(NAME)
    assert mirror(source.backend, target.backend, [NAME]).versions == 0


def test_what_is_no_adapter_keeps_none_from_being_copied(source: Registry, tmp_path: Path) -> None:
    assert isinstance(source.backend, StoreBackend)
    source.backend.store.swap("heads/acme/two words.json", b"{}", None)
    target = Registry((tmp_path / "target").as_uri())
    told = mirror(source.backend, target.backend)
    assert list(told.refused) == ["acme/two words"]
    assert target.names() == [name for name in source.names() if name != "acme/two words"]
    with pytest.raises(InvalidName):
        mirror(source.backend, target.backend, ["acme/two words"])


def smuggle(registry: Registry, folder: Path, claimed: dict[str, int] | None = None) -> None:
    """Put a folder into a store as the next version, past all admission, as whoever may write there can.

    `claimed` are sizes that its manifest says of files, whatever they have.
    """
    name, like = AdapterName.parse(NAME), registry.manifest(registry.resolve(f"{NAME}:1"))
    files = tuple(
        StoredFile(path=path.name, size=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.iterdir())
    )
    told = like.model_copy(update={"files": files, "run": folder.name})
    with registry.backend.stage(name, told, folder):
        pass
    if claimed:
        files = tuple(each.model_copy(update={"size": claimed.get(each.path, each.size)}) for each in files)
        told = told.model_copy(update={"files": files})
        assert isinstance(registry.backend, StoreBackend)
        registry.backend.store.swap(manifest_key(told.digest), told.encode(), None)
    Publishing(registry.backend, Heads(registry.backend)).add(name, Staged(told), None, folder.name)


@pytest.mark.parametrize("url", ["local", "s3", "hub"], indirect=True)
def test_what_could_not_have_been_pushed_is_not_copied(
    url: str, make_adapter: Any, tmp_path: Path, base: Fingerprint
) -> None:
    """Each is told by its reason and keeps its number; the rest is copied, and again nothing is."""
    source, target = Registry((tmp_path / "source").as_uri()), Registry(url)
    source.push(make_adapter(tmp_path / "first"), NAME, base=base)
    weight = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    smuggle(source, make_adapter(tmp_path / "nan", tensors={weight: np.full((16, 4), np.nan, np.float32)}))
    smuggle(source, make_adapter(tmp_path / "imports", auto_mapping={"parent_library": "os"}))
    smuggle(source, make_adapter(tmp_path / "expression", target_modules=".*.*.*.*z|.*(?:q|v)_proj"))
    smuggle(source, make_adapter(tmp_path / "library", auto_mapping={"parent_library": "transformers.models.llama"}))
    pickled = make_adapter(tmp_path / "pickled")
    (pickled / "adapter_model.bin").write_bytes(b"\x80\x04.")
    smuggle(source, pickled)
    smuggle(source, make_adapter(tmp_path / "bomb"), {"adapter_model.safetensors": 1 << 50})
    many = make_adapter(tmp_path / "many")
    for number in range(100):
        (many / f"{number}.txt").write_text("x")
    smuggle(source, many)
    aside, other = Registry((tmp_path / "aside").as_uri()), tmp_path / "published"
    aside.push(make_adapter(tmp_path / "rank", tensors={weight: np.zeros((16, 4), np.float32)}), NAME, base=base)
    aside.pull(NAME, other)
    (other / "swapmeet.json").unlink()
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 999}))
    smuggle(source, other)
    source.push(make_adapter(tmp_path / "last", seed=1), NAME, base=base, alias="prod")
    source.tag(NAME, "test", "2")
    source.push(tmp_path / "first", "zeta/other", base=base)
    done = mirror(source.backend, target.backend)
    assert (done.versions, done.refused) == (3, {})
    assert list(done.unsound) == [f"{NAME}:{number}" for number in range(2, 10)]
    words = (
        "holds a NaN", "auto_mapping", "chooses modules", "auto_mapping", "adapter_model.bin", str(1 << 50),
        "103 files", "says something else",
    )  # fmt: skip
    for why, word in zip(done.unsound.values(), words, strict=True):
        assert word in why
    listing = target.show(NAME)
    assert [each.version for each in listing.versions if each.usable] == [1, 10]
    assert [each.digest for each in listing.versions] == [each.digest for each in source.show(NAME).versions]
    with pytest.raises(NotFound, match=r"was deleted: not admitted: .*NaN"):
        target.resolve(f"{NAME}:test")
    assert target.resolve(f"{NAME}:prod").version == 10
    assert fsck(target.backend.url, True).sound
    heads = [target.head(name) for name in target.names()]
    again = mirror(source.backend, target.backend)
    assert (again.versions, again.unsound) == (0, done.unsound)
    assert [target.head(name) for name in target.names()] == heads


def test_what_is_there_is_not_admitted_again(source: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Registry((tmp_path / "target").as_uri())
    mirror(source.backend, target.backend)
    monkeypatch.setattr("swapmeet_registry.copies.copier.require_sound", lambda *_: pytest.fail("it was looked at"))
    source.yank(f"{NAME}:5", "old")
    assert mirror(source.backend, target.backend).versions == 0
