"""Bundles: there and back, the same bytes each time, and every hostile one refused with nothing written."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import (
    Conflict,
    Fingerprint,
    NotFound,
    Recalled,
    Refused,
    Registry,
    RegistryError,
    canonical,
    fault,
)
from swapmeet_registry.copies.bundle import export_bundle, import_bundle
from swapmeet_registry.copies.bundle_file import INDEX, write_end, write_member
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


def packed(files: Files, path: Path) -> Path:
    with path.open("wb") as stream:
        for name, data in files.items():
            write_member(stream, name, len(data), [data])
        write_end(stream)
    return path


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
    assert len(files) == 1 + 4 + 5, "an index, manifests, three weights, one configuration, one README"
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
    with pytest.raises(Conflict, match="another acme/legal:1"):
        import_bundle(target, export(source, [NAME], tmp_path / "whole.tar"))


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


def changed(files: Files, name: str, data: bytes) -> Files:
    return {each: data if each == name else old for each, old in files.items()}


def index_of(files: Files) -> Any:
    return json.loads(next(iter(files.values())))


def named(data: bytes) -> str:
    return INDEX + canonical.digest(data)[7:]


def replaced(files: Files, index: Any) -> Files:
    """With another index in place of the first file."""
    data = canonical.encode(index)
    return {named(data): data} | dict(list(files.items())[1:])


def with_index(files: Files, change: Callable[[Any], None]) -> Files:
    index = index_of(files)
    change(index)
    return replaced(files, index)


def forged(files: Files, change: Callable[[Any], None]) -> Files:
    """With the manifest of the last version changed, and all digests made to fit."""
    index = index_of(files)
    record = index["parts"][-1]["head"]["versions"][-1]
    old = f"manifests/{record['digest'].replace(':', '/')}"
    manifest = json.loads(files[old])
    change(manifest)
    data = canonical.encode(manifest)
    record["digest"] = canonical.digest(data)
    new = f"manifests/{record['digest'].replace(':', '/')}"
    renamed = {(new if name == old else name): (data if name == old else each) for name, each in files.items()}
    return replaced(renamed, index)


def hostile(files: Files) -> Iterator[tuple[str, Files | bytes, str]]:
    """What is wrong with a bundle, its files or its bytes, and what must be said."""
    whole = bundle_bytes(files)
    blob = next(name for name in files if name.startswith("blobs/"))
    last = next(name for name in reversed(files) if name.startswith("blobs/"))
    zeros = "blobs/sha256/" + "0" * 64
    yield "nothing at all", b"", "no bundle"
    yield "not a tar", b"PK\x03\x04" * 1000, "no bundle"
    yield "cut off", whole[: len(whole) // 2], "ends in the middle|lacks|missing"
    yield "without its end", whole[:-1024], "missing"
    yield "a header's bit flipped", whole[:20] + bytes([whole[20] ^ 1]) + whole[21:], "damaged"
    yield "a bit flipped", changed(files, last, files[last][:-1] + bytes([files[last][-1] ^ 1])), "SHA-256"
    yield "index not first", dict(reversed(files.items())), "does not begin"
    yield "two indices", files | {named(b"{}"): b"{}"}, "nothing in it needs"
    yield "a name that is no digest", files | {INDEX + "x": b""}, "does not belong"
    yield "traversal", files | {"../../etc/passwd": b"x"}, "does not belong"
    yield "absolute", files | {"/etc/passwd": b"x"}, "does not belong"
    yield "traversal by digest", files | {"blobs/sha256/../../x": b"x"}, "does not belong"
    yield "not needed", files | {zeros: b"x"}, "nothing in it needs"
    yield "lacks a file", {name: data for name, data in files.items() if name != blob}, "lacks blobs"
    yield "another size", changed(files, blob, files[blob] + b"x"), "nothing in it needs"
    yield "a huge index", {named(b""): b" " * (65 << 20)}, "at most"
    yield "no index", {named(b"[]"): b"[]"}, "not a JSON object"
    yield "an unknown schema", with_index(files, lambda index: index.update(schema="x")), "schema"
    yield "an unknown field", with_index(files, lambda index: index.update(x=1)), "x"
    yield "a name twice", with_index(files, lambda index: index["parts"].append(index["parts"][0])), "twice"
    yield "a bad name", with_index(files, lambda index: index["parts"][0]["head"].update(adapter="../x")), "not an"
    yield "a foreign name", with_index(files, lambda i: i["parts"][0]["head"].update(adapter="eve/x")), "is one of"
    yield "numbers", with_index(files, lambda i: i["parts"][0]["head"]["versions"].pop(0)), "contradicts|needs"
    yield "an alias", with_index(files, lambda i: i["parts"][0]["head"]["aliases"].update(a=9)), "contradicts"
    yield "another's manifest", forged(files, lambda manifest: manifest.update(adapter=NAME)), "is one of"
    yield "a path", forged(files, lambda manifest: manifest["files"][0].update(path="../x")), "path"
    yield "a file twice", forged(files, lambda m: m["files"].append(m["files"][0])), "twice"
    yield "a pickle", forged(files, lambda m: m["files"][0].update(path="weights.bin")), "pickle|has no"
    yield "unsound", forged(files, lambda m: m["files"].pop()), "has no|needs"


def bundle_bytes(files: Files) -> bytes:
    stream = io.BytesIO()
    for name, data in files.items():
        write_member(stream, name, len(data), [data])
    write_end(stream)
    return stream.getvalue()


def test_hostile_bundles(bundle: Path, tmp_path: Path) -> None:
    files = unpacked(bundle)
    target = Registry((tmp_path / "target").as_uri())
    for number, (what, content, said) in enumerate(hostile(files)):
        path = tmp_path / f"hostile-{number}.tar"
        path.write_bytes(content if isinstance(content, bytes) else bundle_bytes(content))
        with pytest.raises(RegistryError, match=said):
            import_bundle(target, path)
        assert target.names() == [], what
        assert not (tmp_path / "target").exists(), what


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE,
                                  tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])  # fmt: skip
def test_nothing_but_plain_files(kind: bytes, bundle: Path, tmp_path: Path) -> None:
    info = tarfile.TarInfo("blobs/sha256/" + "0" * 64)
    info.type, info.linkname = kind, "/etc/passwd"
    bundle.write_bytes(bundle.read_bytes()[:-1024] + info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024)
    with pytest.raises(Refused, match="no plain file"):
        import_bundle(Registry((tmp_path / "target").as_uri()), bundle)
    assert not (tmp_path / "target").exists()


def test_every_flipped_bit_is_found(bundle: Path, tmp_path: Path) -> None:
    """One in each kilobyte, or it is in what no reader looks at; then what is imported is the same."""
    whole, target = bundle.read_bytes(), tmp_path / "target"
    for place in range(0, len(whole) - 1024, 1031):
        bundle.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            import_bundle(Registry(target.as_uri()), bundle)
        except RegistryError:
            assert not target.exists()
        else:
            assert whole[place] == 0, "padding"
            assert fsck(target.as_uri(), True).sound
            return


class Killed(BaseException):
    """Nothing may catch it but the test."""


def test_killed_at_any_step(bundle: Path, source: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, number, left = (tmp_path / "target").as_uri(), 0, [0]

    def hook(step: str) -> None:
        left[0] -= 1
        if not left[0]:
            raise Killed(step)

    while True:
        number += 1
        left[0] = number
        with monkeypatch.context() as patch:
            patch.setattr(fault, "hook", hook)
            try:
                import_bundle(Registry(url), bundle)
                break
            except Killed:
                assert fsck(url, True).problems == []
    assert Registry(url).head(NAME) == source.head(NAME)
    left[0] = 3
    with monkeypatch.context() as patch:
        patch.setattr(fault, "hook", hook)
        with pytest.raises(Killed):
            export_bundle(source, [NAME], tmp_path / "half.tar")
    assert list(tmp_path.glob("*half*")) == []
