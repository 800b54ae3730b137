"""A name belongs to whoever published under it first, for good: not even deleting everything makes it anybody's."""

from collections.abc import Callable
from pathlib import Path

import pytest

from swapmeet_registry import Conflict, Fingerprint, NotFound, Registry
from swapmeet_registry.copies.bundle import export_bundle, import_bundle
from swapmeet_registry.copies.mirror import mirror
from swapmeet_registry.store_backend import StoreBackend
from swapmeet_registry.upkeep.collection import collect
from swapmeet_registry.upkeep.fsck import fsck

NAME = "acme/legal"


@pytest.fixture
def deleted(url: str, make_adapter: Callable[..., Path], tmp_path: Path, base: Fingerprint) -> Registry:
    """Two versions, both deleted, and what they had collected."""
    registry = Registry(url)
    for seed in range(2):
        registry.push(make_adapter(tmp_path / f"adapter-{seed}", seed), NAME, base=base, alias="prod")
    assert [each.version for each in registry.delete_all(NAME, "closed")] == [1, 2]
    if isinstance(registry.backend, StoreBackend):
        assert collect(registry.backend.store, age=0, grace=0).objects > 0
    return registry


def test_numbers_and_digests_are_never_used_again(deleted: Registry, tmp_path: Path, base: Fingerprint) -> None:
    with pytest.raises(NotFound, match="closed"):
        deleted.resolve(f"{NAME}:1")
    old = deleted.head(NAME)
    again = deleted.push(tmp_path / "adapter-0", NAME, base=base)
    assert again.version == 3, "whoever has the name goes on where he was"
    assert deleted.head(NAME).versions[:2] == old.versions
    with pytest.raises(NotFound, match="closed"):
        deleted.resolve(f"{NAME}@{old.versions[0].digest}")
    assert deleted.verify(NAME) == again
    assert fsck(deleted.backend.url, True).sound


def test_the_name_stays_listed_and_its_tombstones_travel(
    deleted: Registry, url: str, make_adapter: Callable[..., Path], tmp_path: Path, base: Fingerprint
) -> None:
    assert deleted.names() == [NAME]
    assert [each.deleted for each in deleted.show(NAME).versions] == ["closed", "closed"]
    copy = Registry((tmp_path / "copy").as_uri())
    assert mirror(deleted.backend, copy.backend).refused == {}
    export_bundle(deleted, [NAME], tmp_path / "bundle.tar")
    other = Registry((tmp_path / "other").as_uri())
    assert import_bundle(other, tmp_path / "bundle.tar") == ()
    for registry in (copy, other):
        assert registry.head(NAME) == deleted.head(NAME)
        assert registry.push(tmp_path / "adapter-1", NAME, base=base).version == 3


def test_nobody_else_gets_it_by_a_mirror_or_a_file(
    deleted: Registry, make_adapter: Callable[..., Path], tmp_path: Path, base: Fingerprint
) -> None:
    """Another registry's adapter of the same name would take its place."""
    foreign = Registry((tmp_path / "foreign").as_uri())
    for seed in range(5, 8):
        foreign.push(make_adapter(tmp_path / f"adapter-{seed}", seed), NAME, base=base, alias="prod")
    before = deleted.head(NAME)
    assert "The target has another acme/legal:1" in mirror(foreign.backend, deleted.backend).refused[NAME]
    export_bundle(foreign, [NAME], tmp_path / "foreign.tar")
    with pytest.raises(Conflict, match="another acme/legal:1"):
        import_bundle(deleted, tmp_path / "foreign.tar")
    assert deleted.head(NAME) == before


def test_a_deleted_version_does_not_come_back_by_itself(deleted: Registry, tmp_path: Path, base: Fingerprint) -> None:
    """From a registry that still has it."""
    source = Registry((tmp_path / "source").as_uri())
    source.push(tmp_path / "adapter-0", NAME, base=base)
    export_bundle(source, [f"{NAME}:1"], tmp_path / "one.tar")
    whole = Registry((tmp_path / "whole").as_uri())
    import_bundle(whole, tmp_path / "one.tar")
    whole.delete(f"{NAME}:1", "ours")
    (found,) = import_bundle(whole, tmp_path / "one.tar")
    assert (found.number, found.new) == (1, False)
    mirror(source.backend, whole.backend)
    with pytest.raises(NotFound, match="ours"):
        whole.resolve(f"{NAME}:1")
