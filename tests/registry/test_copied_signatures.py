"""Signatures and reports that come along with copies: from any place to any other, and in files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import Fingerprint, Refused, Registry, SignatureInvalid, Trust, Version, fault
from swapmeet_registry.copies import notes
from swapmeet_registry.copies.bundle import export_bundle, import_bundle
from swapmeet_registry.copies.mirror import Mirrored, mirror
from swapmeet_registry.signing.keys import PrivateKey, make_keys
from swapmeet_registry.upkeep.fsck import fsck

NAME, OTHER = "acme/legal", "zeta/other"
LIMIT = 1 << 20


@pytest.fixture
def key(tmp_path: Path) -> PrivateKey:
    return PrivateKey(make_keys(tmp_path / "pair")[0])


@pytest.fixture
def trust(key: PrivateKey, tmp_path: Path) -> Trust:
    (tmp_path / "trusted.pem").write_bytes(key.public.pem)
    return Trust("require", tmp_path / "trusted.pem")


@pytest.fixture
def fill(make_adapter: Callable[..., Path], tmp_path: Path, base: Fingerprint, key: PrivateKey) -> Callable[[str], Any]:
    """Three versions of a name and one of another; the last of each is signed, by two keys."""

    def run(url: str) -> Registry:
        registry, stranger = Registry(url), PrivateKey(make_keys(tmp_path / "stranger")[0])
        for seed in range(3):
            registry.push(make_adapter(tmp_path / f"adapter-{seed}", seed), NAME, base=base, alias="prod")
        registry.push(tmp_path / "adapter-0", OTHER, base=base)
        for name in (NAME, OTHER):
            registry.sign(name, key)
            registry.sign(name, stranger)
        return registry

    return run


@pytest.fixture
def source(fill: Callable[[str], Registry], tmp_path: Path) -> Registry:
    return fill((tmp_path / "source").as_uri())


def signatures(registry: Registry, version: Version) -> dict[str, bytes | None]:
    backend = registry.backend
    return {key: backend.signature(version, key, LIMIT) for key in backend.signers(version)}


def same_notes(source: Registry, target: Registry) -> bool:
    """The same signatures of all versions, and the same reports where the target keeps some."""
    versions = [version for name in source.names() for version in source.show(name).versions]
    assert list(source.backend.signed()) == list(target.backend.signed())
    reports = [(each, target.backend.report(each, LIMIT)) for each in versions]
    assert all(report in (None, source.backend.report(each, LIMIT)) for each, report in reports)
    return all(signatures(source, each) == signatures(target, each) for each in versions)


def test_mirrors_of_what_is_signed(source: Registry, url: str, trust: Trust, tmp_path: Path) -> None:
    target = Registry(url, trust)
    assert mirror(source.backend, target.backend).refused == {}
    assert same_notes(source, target)
    assert target.pull(NAME, tmp_path / "pulled").version == 3
    with pytest.raises(SignatureInvalid, match="there is none"):
        target.verify(f"{NAME}:1")
    back = Registry((tmp_path / "back").as_uri(), trust)
    mirror(target.backend, back.backend)
    assert same_notes(source, back)
    assert mirror(source.backend, target.backend) == Mirrored(2, 0, 0, {})
    assert fsck(url, True).sound


def test_signatures_that_come_later_follow(source: Registry, url: str, key: PrivateKey, tmp_path: Path) -> None:
    target = Registry(url)
    mirror(source.backend, target.backend)
    own = PrivateKey(make_keys(tmp_path / "own")[0])
    source.sign(f"{NAME}:1", key)
    target.sign(f"{NAME}:1", own)
    target.sign(f"{NAME}:2", own)
    source.sign(f"{OTHER}:1", own)
    assert mirror(source.backend, target.backend, [NAME]) == Mirrored(1, 0, 0, {})
    first = target.resolve(f"{NAME}:1")
    assert target.backend.signers(first) == sorted((key.public.id, own.public.id)), (
        "what the target has of its own stays"
    )
    assert target.backend.signers(target.resolve(f"{NAME}:2")) == [own.public.id]
    assert own.public.id not in target.backend.signers(target.resolve(OTHER)), "only of names that were asked for"
    mirror(source.backend, target.backend)
    assert own.public.id in target.backend.signers(target.resolve(OTHER))


@pytest.mark.parametrize("refs", [[NAME, OTHER], [f"{NAME}:prod", f"{OTHER}:1"]], ids=["whole", "single"])
def test_a_bundle_for_a_registry_that_requires_signatures(
    source: Registry, url: str, trust: Trust, refs: list[str], tmp_path: Path
) -> None:
    export_bundle(source, refs, tmp_path / "bundle.tar")
    target = Registry(url, trust)
    import_bundle(target, tmp_path / "bundle.tar")
    for name in (NAME, OTHER):
        version = target.pull(name, tmp_path / name)
        assert signatures(target, version) == signatures(source, source.resolve(name))
    if not url.startswith("hf:"):
        version = source.resolve(NAME)
        assert target.backend.report(version, LIMIT) == source.backend.report(version, LIMIT) is not None
    assert not any(each.new for each in import_bundle(target, tmp_path / "bundle.tar"))


def test_a_bundle_brings_signatures_of_what_is_there_already(source: Registry, key: PrivateKey, tmp_path: Path) -> None:
    target = Registry((tmp_path / "target").as_uri())
    mirror(source.backend, target.backend)
    source.sign(f"{NAME}:1", key)
    export_bundle(source, [f"{NAME}:1"], tmp_path / "bundle.tar")
    (found,) = import_bundle(target, tmp_path / "bundle.tar")
    assert not found.new
    assert same_notes(source, target)


def test_a_version_is_never_seen_without_its_signatures(
    source: Registry, url: str, trust: Trust, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at from every step of an import."""
    export_bundle(source, [f"{NAME}:prod"], tmp_path / "bundle.tar")
    target, seen = Registry(url, trust), list[bool]()

    def look(step: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(fault, "hook", lambda _: None)
            seen.append(NAME in target.names())
            if seen[-1]:
                target.verify(NAME)

    monkeypatch.setattr(fault, "hook", look)
    import_bundle(Registry(url), tmp_path / "bundle.tar")
    assert (seen[0], seen[-1]) == (False, True)


def test_what_is_no_signature_stays_behind(
    source: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write to a store can put anything beside its versions; nobody's copy depends on that."""
    version = source.resolve(NAME)
    good = source.backend.signers(version)
    for number, junk in enumerate((b"junk", b"{}", b" " * ((1 << 20) + 1))):
        source.backend.put_signature(version, f"{number:064x}", junk)
    target = Registry((tmp_path / "target").as_uri())
    assert mirror(source.backend, target.backend).refused == {}
    assert target.backend.signers(version) == good
    assert caplog.text.count("is no signature: it") >= 3
    export_bundle(source, [NAME], tmp_path / "bundle.tar")
    import_bundle(Registry((tmp_path / "other").as_uri()), tmp_path / "bundle.tar")
    monkeypatch.setattr(notes, "MAX_SIGNATURES", 3000)
    with pytest.raises(Refused, match="have over 3000 bytes together"):
        export_bundle(source, [NAME], tmp_path / "more.tar")


def test_one_who_signs_while_it_is_exported(source: Registry, key: PrivateKey, tmp_path: Path) -> None:
    def sign(step: str) -> None:
        if step == "bundle.exported":
            source.sign(f"{NAME}:2", key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fault, "hook", sign)
        with pytest.raises(Refused, match=r"acme/legal:2 was signed while it was exported\. Export again"):
            export_bundle(source, [NAME], tmp_path / "bundle.tar")
    assert not (tmp_path / "bundle.tar").exists()
