"""Every hostile bundle is refused by its reason, in little memory, with nothing written."""

import io
import json
import tarfile
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import Fingerprint, Refused, Registry, RegistryError, canonical
from swapmeet_registry.copies.bundle import export_bundle, import_bundle
from swapmeet_registry.copies.bundle_file import INDEX, note_name, write_end, write_member
from swapmeet_registry.signing.keys import PrivateKey, make_keys
from swapmeet_registry.upkeep.fsck import fsck

NAME = "acme/legal"
Files = dict[str, bytes]


@pytest.fixture
def bundle(make_adapter: Any, tmp_path: Path, base: Fingerprint) -> Path:
    """Two versions of a name, one of them signed, and one of another."""
    registry = Registry((tmp_path / "source").as_uri())
    for seed in range(2):
        registry.push(make_adapter(tmp_path / f"adapter-{seed}", seed), NAME, base=base, alias="prod")
    registry.push(tmp_path / "adapter-0", "zeta/other", base=base)
    for name in (NAME, "zeta/other"):
        registry.sign(name, PrivateKey(make_keys(tmp_path / name)[0]))
    export_bundle(registry, [NAME, "zeta/other:1"], tmp_path / "bundle.tar")
    return tmp_path / "bundle.tar"


def unpacked(bundle: Path) -> Files:
    """As any tar program reads it."""
    with tarfile.open(bundle) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


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
    notes = index["parts"][-1].pop("notes").values()
    gone = {note_name(sha256) for about in notes for sha256 in about["signatures"].values()}
    files = {name: each for name, each in files.items() if name not in gone}
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
    yield "a huge index", {named(b""): b" " * (5 << 20)}, "at most"
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
    model = json.loads(next(data for name, data in reversed(files.items()) if name.startswith("manifests/")))
    pickle = {"path": "training_args.bin", "size": 3, "sha256": canonical.sha256(b"\x80\x02.")}
    foreign = forged(files, lambda m: m["files"].append(pickle)) | {f"blobs/sha256/{pickle['sha256']}": b"\x80\x02."}
    yield "a pickle of a run's", foreign, "training_args.bin, which no version"
    yield "another rank", forged(files, lambda m: m["lora"].update(rank=model["lora"]["rank"] + 1)), "something else"
    yield "unsound", forged(files, lambda m: m["files"].pop()), "has no|needs"
    yield "many files", forged(files, lambda m: m["files"].extend(m["files"][:1] * 64)), "may have 64"
    manifest = next(name for name in files if name.startswith("manifests/"))
    late = {name: data for name, data in files.items() if name != manifest} | {manifest: files[manifest]}
    yield "a manifest behind its files", late, "nothing in it needs"
    yield "a member twice", whole[:-1024] + bundle_bytes({blob: files[blob]}), "nothing in it needs"
    yield from hostile_notes(files)


def hostile_notes(files: Files) -> Iterator[tuple[str, Files, str]]:
    """Signatures and reports that are none, too many, too large, or about something else."""
    note = next(name for name in reversed(files) if name.startswith("notes/"))
    for junk, said in (
        (b"junk", "is no signature: it is not JSON"),
        (b"{}", "is no signature: it is no model-signing bundle"),
        (b" " * ((1 << 20) + 1), "is no signature: it has more than"),
        (b" " * ((4 << 20) + 1), "at most 4194304"),
    ):
        yield "no signature", signed(files, {"a" * 64: junk}), said
    yield "no report", noted(files, {"report": canonical.sha256(b"{}")}, [b"{}"]), "report on .* has the schema None"
    pieces = [bytes([number]) * (4 << 20) for number in range(5)]
    yield "too large together", signed(files, {f"{n:064x}": each for n, each in enumerate(pieces)}), "bytes together"
    yield "by the thousand", signed(files, {f"{number:064x}": b"{}" for number in range(1001)}), "at most 1000"
    yield "a key that is none", signed(files, {"../../x": b"{}"}), "signatures"
    yield "a digest that is none", noted(files, {"report": "../../x"}, []), "report"
    yield "lacks a note", {name: data for name, data in files.items() if name != note}, "lacks notes"
    yield "a note too many", files | {note_name(canonical.sha256(b"x")): b"x"}, "nothing in it needs"
    about = {"sha256:" + "0" * 64: {"report": canonical.sha256(b"x")}}
    yield "about others", with_index(files, lambda i: i["parts"][0]["notes"].update(about)), "notes something about"


def signed(files: Files, signatures: dict[str, bytes]) -> Files:
    named = {key: canonical.sha256(bundle) for key, bundle in signatures.items()}
    return noted(files, {"signatures": named}, signatures.values())


def noted(files: Files, about: dict[str, Any], notes: Iterable[bytes]) -> Files:
    """With these notes about the last version, in place of its own."""
    index = index_of(files)
    part = index["parts"][-1]
    (digest,) = part["notes"]
    own = part["notes"][digest]["signatures"].values()
    part["notes"][digest] = about
    kept = {name: data for name, data in files.items() if name not in map(note_name, own)}
    return replaced(kept | {note_name(canonical.sha256(data)): data for data in notes}, index)


def bundle_bytes(files: Files) -> bytes:
    stream = io.BytesIO()
    for name, data in files.items():
        write_member(stream, name, len(data), [data])
    write_end(stream)
    return stream.getvalue()


def test_hostile_bundles(bundle: Path, tmp_path: Path) -> None:
    target = Registry((tmp_path / "target").as_uri())
    for what, content, said in hostile(unpacked(bundle)):
        bundle.write_bytes(content if isinstance(content, bytes) else bundle_bytes(content))
        try:
            with pytest.raises(RegistryError, match=said):
                import_bundle(target, bundle)
        except BaseException as error:
            error.add_note(what)
            raise
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


def regions(whole: bytes) -> Iterator[int]:
    """Places in all parts of a bundle: headers, what they are of, what fills the blocks up, and the end."""
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        for member in tar:
            yield from (
                member.offset + at for at in (0, 20, 100, 108, 124, 130, 136, 148, 154, 155, 156, 257, 300, 511)
            )
            after = member.offset_data + member.size
            yield from (member.offset_data, member.offset_data + member.size // 2, after - 1)
            yield from ((after, after + -member.size % 512 - 1) if member.size % 512 else ())
    yield from (len(whole) - 1024, len(whole) - 513, len(whole) - 512, len(whole) - 1)


def test_every_flipped_bit_is_found(bundle: Path, tmp_path: Path) -> None:
    whole, target = bundle.read_bytes(), tmp_path / "target"
    for place in sorted(set(regions(whole))):
        bundle.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(RegistryError):
            import_bundle(Registry(target.as_uri()), bundle)
        assert not target.exists(), place
    bundle.write_bytes(whole)
    import_bundle(Registry(target.as_uri()), bundle)
    assert fsck(target.as_uri(), True).sound


def test_wherever_it_was_cut_off_or_goes_on(bundle: Path, tmp_path: Path) -> None:
    whole, target = bundle.read_bytes(), tmp_path / "target"
    for content in (*(whole[:at] for at in range(0, len(whole), 997)), whole[:-1], whole[:-512], whole + b"\0"):
        bundle.write_bytes(content)
        with pytest.raises(Refused):
            import_bundle(Registry(target.as_uri()), bundle)
        assert not target.exists()


def test_headers_that_promise_what_is_not_there(bundle: Path, tmp_path: Path) -> None:
    """A terabyte, an index of a gigabyte, less than nothing: nothing is read or reserved on the strength of it."""
    whole, target = bundle.read_bytes(), tmp_path / "target"
    blob, index = "blobs/sha256/" + "0" * 64, INDEX + "0" * 64
    for name, size, said in ((blob, 1 << 40, "at most"), (blob, 3 << 30, "in the middle"), (index, 1 << 30, "at most"),
                             (index, 1 << 62, "at most"), (blob, -1, "at most|damaged")):  # fmt: skip
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        header = info.tobuf(tarfile.GNU_FORMAT)
        bundle.write_bytes(header + b"\0" * 1024 if name == index else whole[:-1024] + header + b"\0" * 1024)
        tracemalloc.start()
        with pytest.raises(Refused, match=said):
            import_bundle(Registry(target.as_uri()), bundle)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()
        assert not target.exists()
    with bundle.open("wb") as stream:  # it is there, and as sparse as its sender was lazy
        info = tarfile.TarInfo(index)
        info.size = 1 << 30
        stream.write(info.tobuf(tarfile.GNU_FORMAT))
        stream.truncate((1 << 30) + 2048)
    with pytest.raises(Refused, match="has 1073741824 bytes; at most 4194304 are accepted"):
        import_bundle(Registry(target.as_uri()), bundle)


def test_what_was_made_by_another_tar_is_refused(bundle: Path, tmp_path: Path) -> None:
    files = unpacked(bundle)
    with tarfile.open(bundle, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = len(data), 1_700_000_000, "root"
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(Refused, match="has an owner, a time or else"):
        import_bundle(Registry((tmp_path / "target").as_uri()), bundle)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["", '{"whole":true,"head":{"schema":"swapmeet.head/1","adapter":"a/b","versions":['])
def test_the_worst_index_takes_little_memory(part: str, tmp_path: Path) -> None:
    """As many objects as fit, and every one of them a list."""
    begin, end = b'{"schema":"swapmeet.bundle/1","parts":[' + part.encode(), b"[]]}}]}" if part else b"[]]}"
    lists = begin + b"[]," * (((4 << 20) - len(begin + end)) // 3) + end
    (tmp_path / "bundle.tar").write_bytes(bundle_bytes({named(lists): lists}))
    tracemalloc.start()
    with pytest.raises(Refused, match=r"parts\.0"):
        import_bundle(Registry((tmp_path / "target").as_uri()), tmp_path / "bundle.tar")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 << 20
