"""Signatures: made, kept, checked by policy on every backend, and not to be fooled."""

import base64
import json
import logging
import pickle
import shutil
import stat
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import (
    Fingerprint,
    Registry,
    SignatureInvalid,
    SigningKeyInvalid,
    Trust,
    canonical,
)
from swapmeet_registry.backend import open_backend
from swapmeet_registry.signing import oms
from swapmeet_registry.signing.keys import PrivateKey, PublicKey, make_keys

NAME = "acme/legal"
SAMPLES = Path(__file__).with_name("samples") / "signatures"


@pytest.fixture
def folder(make_adapter: Callable[..., Path], tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "adapter")


@pytest.fixture
def key(tmp_path: Path) -> PrivateKey:
    return PrivateKey(make_keys(tmp_path / "pair")[0])


@pytest.fixture
def trusted(tmp_path: Path, key: PrivateKey) -> Path:
    """A folder in which `key` is trusted for acme's adapters."""
    (tmp_path / "trusted" / "acme").mkdir(parents=True)
    (tmp_path / "trusted" / "acme" / "ci.pem").write_bytes(key.public.pem)
    return tmp_path / "trusted"


def another(tmp_path: Path, name: str = "other") -> PrivateKey:
    return PrivateKey(make_keys(tmp_path / name)[0])


def local(tmp_path: Path, trust: Trust | None = None) -> Registry:
    url = (tmp_path / "registry").as_uri()
    return Registry(url, trust) if trust else Registry(url)


# --- on every backend


def test_a_signed_version_is_pulled_and_an_unsigned_one_refused(
    url: str, folder: Path, base: Fingerprint, key: PrivateKey, trusted: Path, tmp_path: Path
) -> None:
    registry = pickle.loads(pickle.dumps(Registry(url, Trust("require", trusted))))
    version = registry.push(folder, NAME, base=base)
    refused = (
        r"^acme/legal:1 bears no good signature of the 1 keys .*: there is none\. .*swapmeet sign acme/legal@sha256"
    )
    with pytest.raises(SignatureInvalid, match=refused):
        registry.pull(NAME, tmp_path / "pulled")
    with pytest.raises(SignatureInvalid, match=refused):
        registry.verify(NAME)
    assert not (tmp_path / "pulled").exists()
    assert registry.signatures(version) == ()
    for _ in range(2):  # once more changes nothing
        assert registry.sign(NAME, key).key == key.public.id
    assert registry.pull(NAME, tmp_path / "pulled") == registry.verify(NAME) == version
    (signature,) = registry.signatures(version)
    assert (signature.signer, signature.good, signature.named) == ("acme/ci.pem", True, True)
    second = registry.push(folder, NAME, base=base)
    assert registry.verify(f"{NAME}:1") == version  # a publish leaves signatures as they are
    with pytest.raises(SignatureInvalid):
        registry.verify(str(second))


def test_signatures_of_strangers_neither_help_nor_harm(
    url: str, folder: Path, base: Fingerprint, key: PrivateKey, trusted: Path, tmp_path: Path
) -> None:
    registry, stranger = Registry(url, Trust("require", trusted)), another(tmp_path)
    version = registry.push(folder, NAME, base=base)
    registry.sign(NAME, stranger)
    with pytest.raises(SignatureInvalid, match=r"there is none"):
        registry.verify(NAME)
    registry.sign(NAME, key)
    backend = open_backend(url)
    for number in range(3):
        backend.put_signature(version, f"{number:064x}", b"junk")
    assert registry.verify(NAME) == version
    found = {signature.key: signature.good for signature in registry.signatures(version)}
    assert found == {key.public.id: True, stranger.public.id: False, **{f"{n:064x}": False for n in range(3)}}


def test_signers_at_once_are_all_kept(
    url: str, folder: Path, base: Fingerprint, key: PrivateKey, tmp_path: Path
) -> None:
    registry = Registry(url)
    version = registry.push(folder, NAME, base=base)
    keys = [key, *(another(tmp_path, f"other-{number}") for number in range(3))]
    with ThreadPoolExecutor(5) as pool:
        pushed = pool.submit(lambda: Registry(url).push(folder, NAME, base=base))
        list(pool.map(lambda each: Registry(url).sign(str(version), each), keys))
    assert pushed.result().version == 2
    assert registry.backend.signers(version) == sorted(each.public.id for each in keys)


# --- policy and keys


def test_policies(folder: Path, base: Fingerprint, trusted: Path, tmp_path: Path, caplog: Any) -> None:
    version = local(tmp_path).push(folder, NAME, base=base)
    assert local(tmp_path, Trust("off", trusted)).verify(NAME) == version
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING):
        assert local(tmp_path, Trust("warn", trusted)).pull(NAME, tmp_path / "pulled") == version
    assert "bears no good signature" in caplog.text
    with pytest.raises(SignatureInvalid):  # what is there already is not taken on trust either
        local(tmp_path, Trust("require", trusted)).pull(NAME, tmp_path / "pulled")
    with pytest.raises(SigningKeyInvalid, match=r"without trusted keys"):
        Trust("require")


def test_keys_count_for_their_tenant_only_and_as_long_as_they_are_there(
    folder: Path, base: Fingerprint, key: PrivateKey, trusted: Path, tmp_path: Path
) -> None:
    registry = local(tmp_path, Trust("require", trusted))
    for name in (NAME, "globex/legal"):
        registry.push(folder, name, base=base)
        registry.sign(name, key)
    registry.verify(NAME)
    with pytest.raises(SignatureInvalid, match=r"the 0 keys"):
        registry.verify("globex/legal")
    shutil.move(trusted / "acme" / "ci.pem", trusted / "all.pem")
    registry.verify(NAME)
    registry.verify("globex/legal")
    (trusted / "all.pem").unlink()
    with pytest.raises(SignatureInvalid):
        registry.verify(NAME)
    single = local(tmp_path, Trust("require", tmp_path / "pair" / "signing-key.pub.pem"))
    single.verify(NAME)


@pytest.mark.parametrize("policy", ["warn", "require"])
def test_what_is_wrong_with_trusted_keys_is_never_passed_over(
    policy: Any, folder: Path, base: Fingerprint, trusted: Path, tmp_path: Path
) -> None:
    registry = local(tmp_path, Trust(policy, trusted))
    registry.push(folder, NAME, base=base)
    for data, reason in (
        (b"nonsense", r"junk\.pem holds no public key"),
        ((tmp_path / "pair" / "signing-key.pem").read_bytes(), r"holds a private key"),
        (b"x" * 100_000, r"more than 65536 bytes"),
        (rsa(), r"of a kind that is not used"),
        (ec("secp256k1"), r"of a kind that is not used"),
    ):
        (trusted / "junk.pem").write_bytes(data)
        with pytest.raises(SigningKeyInvalid, match=reason):
            registry.verify(NAME)
    shutil.rmtree(trusted)
    with pytest.raises(SigningKeyInvalid, match=r"no folder of trusted keys"):
        registry.verify(NAME)


@pytest.mark.parametrize("policy", ["warn", "require"])
@pytest.mark.parametrize("question", ["is_file", "is_dir", "iterdir"])
def test_trusted_keys_that_can_not_be_read_are_an_error(
    policy: Any, question: str, trusted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, question, denied)
    with pytest.raises(SigningKeyInvalid, match=r"can not be read \(Permission denied\)\. Let Swapmeet read it"):
        Trust(policy, trusted).keys_for("acme")


def test_pairs(tmp_path: Path) -> None:
    private, public, key = make_keys(tmp_path / "deep" / "pair", "secret")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert PublicKey.read(public) == key == PrivateKey(private, "secret").public
    for password in (None, "wrong"):
        with pytest.raises(SigningKeyInvalid, match=r"password"):
            PrivateKey(private, password)
    with pytest.raises(SigningKeyInvalid, match=r"is there already"):
        make_keys(tmp_path / "deep" / "pair")
    with pytest.raises(SigningKeyInvalid, match=r"no private key"):
        PrivateKey(public)
    with pytest.raises(SigningKeyInvalid, match=r"can not be read"):
        PrivateKey(tmp_path / "missing.pem")


def pem_of(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def rsa() -> bytes:
    from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

    return pem_of(generate_private_key(65537, 2048))


def ec(curve: str) -> bytes:
    from cryptography.hazmat.primitives.asymmetric import ec as curves

    return pem_of(
        curves.generate_private_key({"secp256k1": curves.SECP256K1(), "secp384r1": curves.SECP384R1()}[curve])
    )


@pytest.mark.parametrize("kind", ["secp384r1", "secp521r1", "ed25519"])
def test_other_kinds_of_keys(kind: str, folder: Path, base: Fingerprint, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    options = ["ED25519"] if kind == "ed25519" else ["EC", "-pkeyopt", f"ec_paramgen_curve:{kind}"]
    subprocess.run(["openssl", "genpkey", "-algorithm", *options, "-out", path], check=True, capture_output=True)
    key = PrivateKey(path)
    (tmp_path / "pub.pem").write_bytes(key.public.pem)
    registry = local(tmp_path, Trust("require", tmp_path / "pub.pem"))
    registry.push(folder, NAME, base=base)
    registry.sign(NAME, path)
    registry.verify(NAME)


# --- what must not pass


@pytest.fixture
def signed() -> oms.Signed:
    return oms.Signed(NAME, "sha256:" + "a" * 64, {"a.json": "1" * 64, "swapmeet.json": "2" * 64})


def forged(key: PrivateKey, bundle: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """A bundle with another statement, soundly signed."""
    document = json.loads(bundle)
    statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
    change(statement)
    payload = canonical.encode(statement)
    document["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    document["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(key.sign(oms._pae(payload))).decode()
    return canonical.encode(document)


STATEMENTS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda s: s["predicate"]["swapmeet"].update(adapter="acme/other"), r"it is one of acme/other@sha256:a"),
    (lambda s: s["predicate"]["swapmeet"].update(manifest="sha256:" + "b" * 64), r"it is one of acme/legal@sha256:b"),
    (lambda s: s["predicate"].update(swapmeet={}), r"its statement is no model-signing bundle \(predicate.swapmeet"),
    (lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]), r"names a file twice"),
    (lambda s: s["predicate"].update(resources=[]), r"digest is not that of its files"),
    (lambda s: s["subject"][0]["digest"].update(sha256="0" * 64), r"digest is not that of its files"),
    (lambda s: s["subject"][0]["digest"].clear(), r"subject\.0\.digest\.sha256: field required"),
    (lambda s: s["subject"].append(s["subject"][0]), r"subject"),
    (lambda s: s.update(predicateType="https://model_signing/Digests/v0.1"), r"predicateType"),
    (lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"), r"_type"),
    (lambda s: s["predicate"]["serialization"].update(method="shards"), r"serialization\.method"),
    (lambda s: s["predicate"]["serialization"].update(hash_type="blake2b"), r"hash_type"),
    (lambda s: s["predicate"]["resources"][0].update(algorithm="md5"), r"algorithm"),
    (lambda s: s["predicate"]["resources"][0].update(digest="12"), r"digest"),
]


@pytest.mark.parametrize(("change", "reason"), STATEMENTS)
def test_a_statement_that_says_something_else(
    change: Callable[[dict[str, Any]], None], reason: str, key: PrivateKey, signed: oms.Signed
) -> None:
    bundle = oms.sign(signed, key)
    assert oms.check(forged(key, bundle, lambda _: None), key.public, signed)
    with pytest.raises(SignatureInvalid, match=reason):
        oms.check(forged(key, bundle, change), key.public, signed)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a.json": "1" * 64}, r"other files: it names 'swapmeet\.json'"),
        ({"a.json": "1" * 64, "swapmeet.json": "2" * 64, "b.json": "3" * 64}, r"leaves out b\.json"),
        ({"a.json": "1" * 64, "swapmeet.json": "3" * 64}, r"of another swapmeet\.json"),
    ],
)
def test_a_signature_of_other_files(files: Any, reason: str, key: PrivateKey, signed: oms.Signed) -> None:
    with pytest.raises(SignatureInvalid, match=reason):
        oms.check(oms.sign(signed, key), key.public, oms.Signed(signed.adapter, signed.manifest, files))


def changed(document: dict[str, Any], **envelope: Any) -> bytes:
    return canonical.encode(document | {"dsseEnvelope": document["dsseEnvelope"] | envelope})


def test_every_other_bundle_is_refused(key: PrivateKey, signed: oms.Signed, tmp_path: Path) -> None:
    bundle, stranger = oms.sign(signed, key), another(tmp_path)
    assert oms.sign(signed, key) == bundle
    document = json.loads(bundle)
    claimed = json.loads(oms.sign(signed, stranger)) | {"verificationMaterial": document["verificationMaterial"]}
    signature = document["dsseEnvelope"]["signatures"][0]
    wrong = [
        (canonical.encode(claimed), r"not made with this key"),  # and says it was
        (bundle * 2, r"not JSON"),
        (b"", r"not JSON"),
        (b"\xff" * 100, r"not UTF-8"),
        (b"[" * 500_000, r"nested too deeply|not JSON"),
        (b'{"mediaType":' + b"9" * 100_000 + b"}", r"."),
        (b'{"a":"' + b"x" * (10 << 20) + b'"}', r"more than"),
        (bundle + b" " * oms.MAX_BUNDLE, r"more than"),
        (b'{"mediaType":"x",' + bundle[1:], r"gives 'mediaType' twice"),
        (canonical.encode(document | {"mediaType": "application/json"}), r"mediaType"),
        (changed(document, payloadType="text/plain"), r"payloadType"),
        (changed(document, payload="*"), r"not Base64"),
        (changed(document, payload="\u00e9"), r"not Base64"),
        (changed(document, payload=""), r"not made with this key"),
        (changed(document, signatures=[]), r"signatures"),
        (changed(document, signatures=[signature] * 2), r"signatures"),
        (changed(document, signatures=[{"sig": ""}]), r"not made with this key"),
        (
            changed(document, signatures=[{"sig": base64.b64encode(b"\x30\x06\x02\x01\x00\x02\x01\x00").decode()}]),
            r"not",
        ),
    ]
    for data, reason in wrong:
        with pytest.raises(SignatureInvalid, match=reason):
            oms.check(data, key.public, signed)


def test_no_truncated_or_flipped_bundle_passes(key: PrivateKey, signed: oms.Signed) -> None:
    bundle = oms.sign(signed, key)
    for at in range(0, len(bundle), 7):
        with pytest.raises(SignatureInvalid):
            oms.check(bundle[:at], key.public, signed)
        for bit in (0, 5):
            flipped = bundle[:at] + bytes([bundle[at] ^ (1 << bit)]) + bundle[at + 1 :]
            try:
                oms.check(flipped, key.public, signed)
            except SignatureInvalid:
                continue
            parts = [json.loads(each)["dsseEnvelope"]["payload"] for each in (bundle, flipped)]
            assert parts[0] == parts[1]  # what is not signed says nothing either


def test_signed_bytes_under_another_name_or_number(
    folder: Path, base: Fingerprint, key: PrivateKey, trusted: Path, tmp_path: Path
) -> None:
    """As somebody who may write to the store could arrange it."""
    registry = local(tmp_path, Trust("require", trusted))
    first = registry.push(folder, NAME, base=base)
    registry.sign(NAME, key)
    backend = registry.backend
    bundle = backend.signature(first, key.public.id, oms.MAX_BUNDLE)
    assert bundle is not None
    for name in ("acme/other", NAME):
        copy = registry.push(folder, name, base=base)
        backend.put_signature(copy, key.public.id, bundle)
        with pytest.raises(SignatureInvalid, match=r"acme/ci\.pem: it is one of acme/legal@sha256:"):
            registry.verify(str(copy))
    head = (tmp_path / "registry" / "heads" / "acme" / "legal.json").read_text()
    (tmp_path / "registry" / "heads" / "acme" / "third.json").write_text(head.replace(NAME, "acme/third"))
    with pytest.raises(SignatureInvalid, match=r"it is one of acme/legal"):
        registry.verify("acme/third:1")  # the very manifest, listed under another name
    assert registry.verify(str(first)) == first


def test_a_huge_signature_is_not_read(
    folder: Path, base: Fingerprint, key: PrivateKey, trusted: Path, tmp_path: Path
) -> None:
    registry = local(tmp_path, Trust("require", trusted))
    version = registry.push(folder, NAME, base=base)
    place = tmp_path / "registry" / "signatures" / "sha256" / version.digest[7:] / f"{key.public.id}.json"
    place.parent.mkdir(parents=True)
    with place.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(SignatureInvalid, match=r"it has more than 1048576 bytes"):
        registry.verify(NAME)


def test_a_deleted_version_is_not_signed_and_its_signatures_are_collected(
    folder: Path, base: Fingerprint, key: PrivateKey, tmp_path: Path
) -> None:
    from swapmeet_registry.upkeep.collection import collect

    registry = local(tmp_path)
    versions = [registry.push(folder, NAME, base=base) for _ in range(2)]
    for version in versions:
        registry.sign(str(version), key)
    registry.delete(str(versions[0]), "Gone.")
    with pytest.raises(LookupError):
        registry.sign(str(versions[0]), key)
    collect(registry.backend.store, age=0, grace=0)  # type: ignore[attr-defined]
    assert [len(registry.backend.signers(version)) for version in versions] == [0, 1]


# --- the format's own tool


def test_samples_of_released_signatures_stay_good() -> None:
    """One by the format's own tool (model-signing 1.1.1), one by ours; the files are those of `files.json`."""
    files = json.loads((SAMPLES / "files.json").read_text())
    signed = oms.Signed(files["adapter"], files["manifest"], files["files"])
    for name, named in (("model-signing", False), ("swapmeet", True)):
        key = PublicKey.read(SAMPLES / f"{name}.pub.pem")
        bundle = (SAMPLES / f"{name}.json").read_bytes()
        assert oms.check(bundle, key, signed) is named
        assert json.loads(bundle)["verificationMaterial"]["publicKey"]["hint"] == key.id


def test_the_stock_tool_and_we_take_each_other_s_signatures(
    folder: Path, base: Fingerprint, key: PrivateKey, trusted: Path, tmp_path: Path
) -> None:
    signing = pytest.importorskip("model_signing.signing", reason="model-signing is not installed")
    verifying = pytest.importorskip("model_signing.verifying")
    registry = local(tmp_path, Trust("require", trusted))
    version = local(tmp_path).push(folder, NAME, base=base, license="MIT")
    local(tmp_path).pull(NAME, tmp_path / "pulled")
    pair = tmp_path / "pair"

    def verify(bundle: Path) -> None:
        check = verifying.Config().use_elliptic_key_verifier(public_key=pair / "signing-key.pub.pem")
        check.verify(tmp_path / "pulled", bundle)

    theirs = tmp_path / "theirs.json"
    signer = signing.Config().use_elliptic_key_signer(private_key=pair / "signing-key.pem")
    signer.sign(tmp_path / "pulled", theirs)
    verify(theirs)
    assert not registry.add_signature(NAME, theirs.read_bytes(), pair / "signing-key.pub.pem").named
    assert registry.verify(NAME) == version
    registry.sign(NAME, key)
    ours = tmp_path / "ours.json"
    ours.write_bytes(registry.backend.signature(version, key.public.id, oms.MAX_BUNDLE) or b"")
    verify(ours)
    added = registry.add_signature(NAME, theirs.read_bytes(), pair / "signing-key.pub.pem")
    assert added.named, "what says more stays"
    assert registry.backend.signature(version, key.public.id, oms.MAX_BUNDLE) == ours.read_bytes()
    (tmp_path / "pulled" / "README.md").write_text("Another.\n")
    with pytest.raises(ValueError, match=r"mismatch"):
        verify(ours)
    signer.sign(tmp_path / "pulled", theirs)
    with pytest.raises(SignatureInvalid, match=r"does not fit acme/legal:1: it is one of other files: of another READ"):
        registry.add_signature(NAME, theirs.read_bytes(), pair / "signing-key.pub.pem")
