"""Keys that sign, in PEM files: NIST curves, which the format's own tool knows, and Ed25519, which it does not."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from swapmeet_registry.errors import SigningKeyInvalid

if TYPE_CHECKING:  # the library takes long to import, and most commands need none of it
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

MAX_FILE = 64 << 10
"""Bytes of a key's file; more is no key."""
CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
"""The curves that may be used, each with the hash that goes with it."""
PRIVATE, PUBLIC = "signing-key.pem", "signing-key.pub.pem"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that signatures are checked with.

    Attributes:
        pem: its one form: PEM, SubjectPublicKeyInfo.
    """

    pem: bytes

    @classmethod
    def read(cls, path: Path) -> Self:
        """The key in a file.

        Raises:
            SigningKeyInvalid: the file holds none that can be used.
        """
        return cls.parse(_read(path), path)

    @classmethod
    def parse(cls, data: bytes, place: Path | str) -> Self:
        """The key in a PEM document, which was found in a place.

        Raises:
            SigningKeyInvalid: it holds none that can be used.
        """
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        if b"PRIVATE KEY" in data:
            raise SigningKeyInvalid(f"{place} holds a private key. Put the public one there, and make a new pair.")
        with _key_errors(place, "public"):
            key = load_pem_public_key(data)
        return cls.of(key, place)

    @classmethod
    def of(cls, key: "PublicKeyTypes", path: Path | str) -> Self:
        """A key as the library has it."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        _scheme(key, path)
        return cls(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    @property
    def id(self) -> str:
        """The hex SHA-256 of its PEM form: the hint that the format has signatures bear."""
        return hashlib.sha256(self.pem).hexdigest()

    def signed(self, data: bytes, signature: bytes) -> bool:
        """Whether the signature is this key's, of these bytes. How it is checked, the key says, and nothing else."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        key: Any = load_pem_public_key(self.pem)
        try:
            key.verify(signature, data, *_scheme(key))
        except InvalidSignature:
            return False
        return True


class PrivateKey:
    """A key that signs. Nothing that it says shows it.

    Args:
        path: a PEM file, PKCS #8 or as OpenSSL writes it.
        password: of an encrypted one.

    Raises:
        SigningKeyInvalid: the file holds none that can be used, or the password is wrong.
    """

    def __init__(self, path: Path, password: str | None = None) -> None:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        data = _read(path)
        with _key_errors(path, "private"):
            self._key: Any = load_pem_private_key(data, password.encode() if password else None)
        self.public = PublicKey.of(self._key.public_key(), path)

    def sign(self, data: bytes) -> bytes:
        """A signature; of the same bytes always the same."""
        return bytes(self._key.sign(data, *_scheme(self._key.public_key(), repeatable=True)))


def encrypted(path: Path) -> bool:
    """Whether a private key's file asks for a password."""
    return b"ENCRYPTED" in _read(path)


def make_keys(folder: Path, password: str | None = None) -> tuple[Path, Path, PublicKey]:
    """Write a new pair on the curve P-256 into a folder; the private key for its owner's eyes only.

    Raises:
        SigningKeyInvalid: one is there already, or the folder can not be written.
    """
    from cryptography.hazmat.primitives import serialization as pem
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    sealed = pem.BestAvailableEncryption(password.encode()) if password else pem.NoEncryption()
    private, public = folder / PRIVATE, folder / PUBLIC
    own = PublicKey.of(key.public_key(), public)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, data, mode in (
            (private, key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, sealed), 0o600),
            (public, own.pem, 0o644),
        ):
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
                stream.write(data)
    except FileExistsError as error:
        raise SigningKeyInvalid(f"{error.filename} is there already. Name another folder.") from error
    except OSError as error:
        raise SigningKeyInvalid(f"{folder} can not be written ({error}). Name another folder.") from error
    return private, public, own


def _scheme(key: Any, path: Path | str | None = None, *, repeatable: bool = False) -> tuple[Any, ...]:
    """What else a kind of key is asked with."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    if isinstance(key, ed25519.Ed25519PublicKey):
        return ()
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in CURVES:
        digest = getattr(hashes, CURVES[key.curve.name])()
        return (ec.ECDSA(digest, deterministic_signing=repeatable),)
    raise SigningKeyInvalid(f"{path} holds a key of a kind that is not used here. Make one with swapmeet signing-key.")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE + 1)
    except OSError as error:
        raise SigningKeyInvalid(f"{path} can not be read ({error.strerror}). Name a PEM file.") from error
    if len(data) > MAX_FILE:
        raise SigningKeyInvalid(f"{path} has more than {MAX_FILE} bytes: that is no key. Name a PEM file.")
    return data


@contextmanager
def _key_errors(path: Path | str, kind: str) -> Iterator[None]:
    """The library's errors as ours, without what it may quote."""
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        yield
    except TypeError:
        wanted = "a password: none, or none is needed, was given" if kind == "private" else "no password"
        raise SigningKeyInvalid(f"{path} needs {wanted}. Give the right one, or leave it out.") from None
    except (ValueError, UnsupportedAlgorithm):
        wrong = ", or the password is wrong" if kind == "private" else ""
        raise SigningKeyInvalid(f"{path} holds no {kind} key in PEM that can be read{wrong}. Name another.") from None
