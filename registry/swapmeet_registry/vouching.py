"""Who vouches for a registry's versions, and what is refused because nobody does."""

from pathlib import Path

from swapmeet_registry.backend import Backend
from swapmeet_registry.manifest import Manifest
from swapmeet_registry.reading import Reading
from swapmeet_registry.signing import Signature, Signatures, Trust
from swapmeet_registry.signing.keys import PrivateKey, PublicKey
from swapmeet_registry.version import Version


class Vouching(Reading):
    """Signs versions, and asks for signatures as far as `trust` says."""

    def __init__(self, backend: Backend, trust: Trust) -> None:
        super().__init__(backend)
        self._signatures = Signatures(backend, trust)

    def sign(self, ref: str, key: Path | PrivateKey) -> Signature:
        """Sign a version: its name, its manifest and all its files. Once more changes nothing.

        Args:
            ref: a reference; what it stands for now is signed.
            key: a private key, or its PEM file where that needs no password.

        Raises:
            NotFound: there is no such version.
            SigningKeyInvalid: the file holds no key that can be used.
        """
        private = key if isinstance(key, PrivateKey) else PrivateKey(key)
        version = self.resolve(ref)
        return self._signatures.sign(version, self.manifest(version), private)

    def add_signature(self, ref: str, bundle: bytes, key: Path | PublicKey) -> Signature:
        """Keep a signature that an OpenSSF model-signing tool made of the version's folder as it is pulled.

        Args:
            ref: a reference.
            bundle: the signature's document.
            key: the public key that it is of, or its PEM file.

        Raises:
            NotFound: there is no such version.
            SignatureInvalid: it is not this key's, or not of this version.
            SigningKeyInvalid: the file holds no public key.
        """
        public = key if isinstance(key, PublicKey) else PublicKey.read(key)
        version = self.resolve(ref)
        return self._signatures.add(version, self.manifest(version), bundle, public)

    def signature(self, version: Version, key: str, limit: int) -> bytes | None:
        """A version's signature by the key with this id, if there is one; no more than `limit` bytes."""
        return self.backend.signature(version, key, limit)

    def signatures(self, version: Version) -> tuple[Signature, ...]:
        """Who signed a version; signatures of trusted keys are checked, of others nothing is known.

        Raises:
            Corrupt: the stored manifest is gone or was changed.
            SigningKeyInvalid: the trusted keys can not be read.
        """
        return self._signatures.of(version, self.manifest(version))

    def require_signed(self, version: Version, manifest: Manifest | None = None) -> None:
        """Do as the policy on signatures says. Whoever hands out a version's bytes asks here first.

        Args:
            version: whose bytes are wanted.
            manifest: the version's, where it is at hand.

        Raises:
            Corrupt: the stored manifest is gone or was changed.
            SignatureInvalid: no trusted key signed it, and one is asked for.
            SigningKeyInvalid: the trusted keys can not be read.
        """
        if self._signatures.trust.policy != "off":
            self._signatures.require(version, manifest or self.manifest(version))
