"""Bundles: there and back, the same bytes each time."""

import tarfile
from pathlib import Path
from typing import Any

import pytest

from swapmeet.cli.copies import import_
from swapmeet_registry import (
    Conflict,
    Fingerprint,
    InvalidName,
    NotFound,
    Recalled,
    Refused,
    Registry,
    canonical,
    fault,
)
from swapmeet_registry.copies.bundle import export_bundle, import_bundle
from swapmeet_registry.copies.bundle_file import INDEX
from swapmeet_registry.upkeep.fsck import fsck

NAME = "acme/legal"
Files = dict[str, bytes]


@pytest.fixture
def source(make_adapter: Any, tmp_path: Path, base: Fingerprint) -> Registry:
    registry = Registry((tmp_path / "source").as_uri())
    for seed in range(4):
        registry.push(make_adapter(tmp_path / f"adapter-{seed}", seed), NAME, base=base, alias="prod")
    registry.yank(f"{NAME}:1", "old")
    registry.recall(f"{NAME}:2", "leaks")
    registry.delete(f"{NAME}:3", "wrong")
    registry.push(tmp_path / "adapter-0", "zeta/other", base=base)
    return registry


@pytest.fixture
def bundle(source: Registry, tmp_path: Path) -> Path:
    export_bundle(source, [NAME, "zeta/other:1"], tmp_path / "bundle.tar")
    return tmp_path / "bundle.tar"


def unpacked(bundle: Path) -> Files:
    """As any tar program reads it."""
    with tarfile.open(bundle) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_there_and_back(source: Registry, bundle: Path, url: str, tmp_path: Path) -> None:
    target = Registry(url)
    found = import_bundle(target, bundle)
    assert [(each.name, each.version, each.number, each.new) for each in found] == [
        (NAME, 1, 1, True), (NAME, 2, 2, True), (NAME, 4, 4, True), ("zeta/other", 1, 1, True),
    ]  # fmt: skip
    assert target.head(NAME) == source.head(NAME)
    assert target.resolve(f"{NAME}:prod").digest == source.resolve(f"{NAME}:prod").digest
    assert target.resolve("zeta/other").digest == source.resolve("zeta/other").digest
    assert fsck(url, True).sound
    assert not any(each.new for each in import_bundle(target, bundle)), "once more changes nothing"
    export_bundle(target, ["zeta/other:1", NAME], tmp_path / "again.tar")
    if not url.startswith("hf:"):
        export_bundle(source, ["zeta/other:1", NAME], tmp_path / "first.tar")
        assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "first.tar").read_bytes()


def test_equal_contents_make_equal_bytes_that_any_tar_reads(source: Registry, bundle: Path, tmp_path: Path) -> None:
    export_bundle(source, ["zeta/other:1", NAME, NAME], tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == bundle.read_bytes()
    files = unpacked(bundle)
    assert next(iter(files)).startswith(INDEX)
    assert len(files) == 1 + 4 + 3 + 5, "an index, manifests, reports, three weights, one configuration, one README"
    for name, data in files.items():
        assert name.endswith(canonical.digest(data)[7:])


def test_a_single_version_takes_the_next_number(
    source: Registry, make_adapter: Any, tmp_path: Path, base: Fingerprint
) -> None:
    exported = export_bundle(source, [f"{NAME}:prod"], tmp_path / "one.tar")
    assert [str(version) for version in exported] == [f"{NAME}:4"]
    assert b"leaks" not in (tmp_path / "one.tar").read_bytes(), "nothing of the other versions"
    target = Registry((tmp_path / "target").as_uri())
    target.push(make_adapter(tmp_path / "mine", 9), NAME, base=base, alias="prod")
    (found,) = import_bundle(target, tmp_path / "one.tar")
    assert (found.version, found.number, found.digest) == (4, 2, exported[0].digest)
    assert (target.resolve(NAME).digest, target.resolve(f"{NAME}:prod").version) == (exported[0].digest, 1)
    assert [each.new for each in import_bundle(target, tmp_path / "one.tar")] == [False]
    target.delete(f"{NAME}:2", "leaks")
    (gone,) = import_bundle(target, tmp_path / "one.tar")
    assert (gone.number, gone.new, gone.deleted) == (2, False, "leaks")
    with pytest.raises(Conflict, match="another acme/legal:1"):
        import_bundle(target, export(source, [NAME], tmp_path / "whole.tar"))


def test_what_was_deleted_is_told_so(
    source: Registry, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = Registry((tmp_path / "target").as_uri())
    import_bundle(target, bundle)
    target.delete(f"{NAME}:4", "leaks")
    found = {(each.name, each.version): each for each in import_bundle(target, bundle)}
    assert found[NAME, 4].deleted == "leaks"
    assert {each.deleted for at, each in found.items() if at != (NAME, 4)} == {None}
    import_(bundle, registry=target.backend.url)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{NAME}:4 "))
    assert line.endswith(", which was deleted here, and stays so: leaks")


def export(source: Registry, refs: list[str], path: Path) -> Path:
    export_bundle(source, refs, path)
    return path


def test_what_can_not_be_exported(source: Registry, tmp_path: Path) -> None:
    out = tmp_path / "out.tar"
    for refs, error, words in (
        ([f"{NAME}:2"], Recalled, "leaks"),
        (["acme/a", "acme/b"], NotFound, "acme/b"),
        ([], Refused, "Nothing"),
    ):
        with pytest.raises(error, match=words):
            export_bundle(source, refs, out)
    out.write_text("mine")
    with pytest.raises(Refused, match="exists"):
        export_bundle(source, [NAME], out)
    assert [path.name for path in tmp_path.glob("*.tar*")] == ["out.tar"]
    assert out.read_text() == "mine"


def test_an_export_that_fails_leaves_nothing(source: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(step: str) -> None:
        raise KeyboardInterrupt(step)

    monkeypatch.setattr(fault, "hook", stop)
    with pytest.raises(KeyboardInterrupt, match=r"bundle\.exported"):
        export_bundle(source, [NAME], tmp_path / "half.tar")
    assert list(tmp_path.glob("*half*")) == []


def test_more_than_fits_into_one_index_is_refused_at_once(
    source: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swapmeet_registry.copies.exporting.MAX_INDEX", 100)
    with pytest.raises(Refused, match=r"has \d+ bytes; at most 100 fit\. Export fewer\."):
        export_bundle(source, [NAME], tmp_path / "big.tar")
    assert list(tmp_path.glob("*big*")) == []


def test_only_the_adapters_of_tenants_that_are_allowed(source: Registry, bundle: Path, tmp_path: Path) -> None:
    target = Registry((tmp_path / "target").as_uri())
    with pytest.raises(Refused, match="has adapters of zeta, who may not be in it"):
        import_bundle(target, bundle, ["acme"])
    assert not (tmp_path / "target").exists()
    assert len(import_bundle(target, bundle, ["acme", "zeta"])) == 4
    with pytest.raises(InvalidName):
        import_bundle(target, bundle, ["../x"])
