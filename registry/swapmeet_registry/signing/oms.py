"""The OpenSSF model-signing format, version 1.0, with a key: a Sigstore bundle of an in-toto statement about files.

The statement lists every file of a version as it is pulled, `swapmeet.json` among them, with its SHA-256, and has one
digest over those. So whoever has the folder and the public key can check it with the format's own tool, offline:

    model_signing verify key --public_key KEY.pub.pem --signature BUNDLE.json FOLDER

Files do not say what they are called: signed bytes could be passed off as another adapter of the same signer's. So the
statement's predicate also has, where others ignore it, `swapmeet: {adapter, manifest}`: the name, and the manifest's
digest, which pins the time and all that the manifest says. Signatures of the format's own tool lack it; they vouch for
the bytes, and not for the name. No signature says which version is the newest, or what an alias points to: whoever may
write heads can offer an older signed version of the same name.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError

from swapmeet_registry import canonical
from swapmeet_registry.errors import SignatureInvalid
from swapmeet_registry.manifest import Manifest, Sha256
from swapmeet_registry.origin.provenance import Digest, Provenance, first_error
from swapmeet_registry.signing.keys import PrivateKey, PublicKey
from swapmeet_registry.version import Version

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
MAX_BUNDLE = 1 << 20
"""Bytes of a signature's document: far more than one with as many files as an adapter may have."""


@dataclass(frozen=True, slots=True)
class Signed:
    """What is signed of a version: its name, its manifest's digest, and the hex SHA-256 of each file as pulled."""

    adapter: str
    manifest: str
    files: Mapping[str, str]

    @classmethod
    def of(cls, version: Version, manifest: Manifest) -> Self:
        """What there is to sign of a version, by the name that it was asked for."""
        files = {file.path: file.sha256 for file in manifest.files}
        files[Provenance.FILE] = hashlib.sha256(manifest.provenance().encode()).hexdigest()
        return cls(version.name, manifest.digest, files)


def sign(signed: Signed, key: PrivateKey) -> bytes:
    """The bundle of a signature: JSON, of the same things always the same."""
    resources = [{"name": n, "algorithm": "sha256", "digest": d} for n, d in sorted(signed.files.items())]
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": signed.adapter, "digest": {"sha256": _root(each["digest"] for each in resources)}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": resources,
            "swapmeet": {"adapter": signed.adapter, "manifest": signed.manifest},
        },
    }
    payload = canonical.encode(statement)
    bundle = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": key.public.id}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(key.sign(_pae(payload))).decode(), "keyid": ""}],
        },
    }
    return canonical.encode(bundle)


def require_form(bundle: bytes) -> None:
    """Refuse what can be nobody's signature, without a key: to be asked before anything is kept for later.

    Raises:
        SignatureInvalid: it is too large, or no bundle of this format.
    """
    if len(bundle) > MAX_BUNDLE:
        raise SignatureInvalid(f"it has more than {MAX_BUNDLE} bytes")
    _decoded(_parsed(_Bundle, bundle, "it").dsseEnvelope.payload)


def check(bundle: bytes, key: PublicKey, signed: Signed) -> bool:
    """Check a signature of just this version.

    Nothing in the bundle is looked at before the key has vouched for it, but where the key's signature stands.

    Returns:
        Whether it also vouches for the adapter's name and its manifest; those of other tools vouch for the files only.

    Raises:
        SignatureInvalid: it is not this key's, not of these files, or of another version; the message says which.
    """
    if len(bundle) > MAX_BUNDLE:
        raise SignatureInvalid(f"it has more than {MAX_BUNDLE} bytes")
    envelope = _parsed(_Bundle, bundle, "it").dsseEnvelope
    payload = _decoded(envelope.payload)
    if not key.signed(_pae(payload), _decoded(envelope.signatures[0].sig)):
        raise SignatureInvalid("it was not made with this key, or was changed")
    statement = _parsed(_Statement, payload, "its statement")
    _require_files(statement, signed.files)
    own = statement.predicate.swapmeet
    if own is not None and (own.adapter, own.manifest) != (signed.adapter, signed.manifest):
        raise SignatureInvalid(f"it is one of {own.adapter}@{own.manifest}")
    return own is not None


def _require_files(statement: "_Statement", files: Mapping[str, str]) -> None:
    listed = statement.predicate.resources
    found = {each.name: each.digest for each in listed}
    if len(found) != len(listed):
        raise SignatureInvalid("it names a file twice")
    if _root(each.digest for each in listed) != statement.subject[0].digest.sha256:
        raise SignatureInvalid("its digest is not that of its files")
    for name in sorted(files.keys() | found.keys()):
        if name not in found:
            raise SignatureInvalid(f"it leaves out {name}")
        if name not in files:
            raise SignatureInvalid(f"it is one of other files: it names {name[:128]!r}")
        if files[name] != found[name]:
            raise SignatureInvalid(f"it is one of other files: of another {name}")


def _root(digests: Any) -> str:
    """One digest over those of the files, in their order."""
    return hashlib.sha256(b"".join(bytes.fromhex(each) for each in digests)).hexdigest()


def _pae(payload: bytes) -> bytes:
    """What is signed, by DSSE: the payload and its type, each with its length."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise SignatureInvalid("it is not Base64 where it must be") from None


class _Foreign(BaseModel):
    """Part of a document of others, in which there may be more."""


Part = TypeVar("Part", bound=_Foreign)


class _Signature(_Foreign):
    sig: str


class _Envelope(_Foreign):
    payload: str
    payloadType: Literal["application/vnd.in-toto+json"]  # noqa: N815 - the format's names
    signatures: tuple[_Signature]


class _Bundle(_Foreign):
    mediaType: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]  # noqa: N815
    dsseEnvelope: _Envelope  # noqa: N815


class _Serialization(_Foreign):
    method: Literal["files"]
    hash_type: Literal["sha256"]


class _Resource(_Foreign):
    name: str
    algorithm: Literal["sha256"]
    digest: Sha256


class _Own(_Foreign):
    adapter: str
    manifest: Digest


class _Predicate(_Foreign):
    serialization: _Serialization
    resources: tuple[_Resource, ...]
    swapmeet: _Own | None = None


class _Digests(_Foreign):
    sha256: Sha256


class _Subject(_Foreign):
    digest: _Digests


class _Statement(_Foreign):
    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    predicateType: Literal["https://model_signing/signature/v1.0"]  # noqa: N815
    subject: tuple[_Subject]
    predicate: _Predicate


def _parsed(model: type[Part], data: bytes, what: str) -> Part:
    try:
        return model.model_validate(canonical.decode(data))
    except ValidationError as error:
        raise SignatureInvalid(f"{what} is no model-signing bundle ({first_error(error).rstrip('.')})") from None
    except ValueError as error:
        raise SignatureInvalid(f"{what} is {error}") from None
