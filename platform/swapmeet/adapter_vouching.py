"""Who vouches for a server's versions: signed and checked here, where the keys are."""

import base64
from pathlib import Path

from swapmeet.adapter_reading import RemoteReading, understanding, version_path
from swapmeet_registry import Manifest, Reference, Signature, Version
from swapmeet_registry.backend import KEY_ID
from swapmeet_registry.signing import oms
from swapmeet_registry.signing.keys import PrivateKey, PublicKey
from swapmeet_registry.signing.signatures import Policy, fitting


class RemoteVouching(RemoteReading):
    """Signs a server's versions, and asks for signatures as far as `trust` says, by keys that stay here."""

    def sign(self, ref: str, key: Path | PrivateKey) -> Signature:
        """Sign a version; see `Registry.sign`. Only the signature and the public key are sent.

        Raises:
            ApiError: the server refused or did not answer.
            SigningKeyInvalid: the file holds no key that can be used.
        """
        private = key if isinstance(key, PrivateKey) else PrivateKey(key)
        version, manifest = self._described(ref)
        self._keep(version, private.public, oms.sign(oms.Signed.of(version, manifest), private))
        return Signature(private.public.id, named=True)

    def add_signature(self, ref: str, bundle: bytes, key: Path) -> Signature:
        """Keep a signature that another tool made; see `Registry.add_signature`."""
        public = PublicKey.read(key)
        version, manifest = self._described(ref)
        made = fitting(version, manifest, bundle, public)
        self._keep(version, public, bundle)
        return made

    def verify(self, ref: str) -> Version:
        """Read every byte of a version and compare it with its digest; see `Registry.verify`. Nothing is kept.

        Raises:
            ApiError: the server refused or did not answer.
            Corrupt: what came has not the digest that it should.
            SignatureInvalid: no trusted key signed it, and one is asked for.
        """
        version, manifest = self._described(ref)
        for file in manifest.files:
            for _ in self.stream(version, file):
                pass
        self.require_signed(version, manifest)
        return version

    def require_signed(self, version: Version, manifest: Manifest) -> None:
        """Do as the policy on signatures says; see `Registry.require_signed`."""
        Policy(self, self.trust).require(version, manifest)

    def signatures(self, version: Version) -> tuple[Signature, ...]:
        """Who signed a version; signatures of trusted keys are checked, of others nothing is known."""
        return Policy(self, self.trust).of(version, self.manifest(version))

    @understanding()
    def signers(self, version: Version) -> list[str]:
        """The ids of the keys that there are signatures of a version by, sorted."""
        told = [str(each["id"]) for each in self._ask("GET", _signatures_path(version))["data"]]
        return sorted(filter(KEY_ID.fullmatch, told))  # files are named so

    @understanding()
    def signature(self, version: Version, key: str, limit: int) -> bytes | None:
        """A version's signature by the key with this id, if there is one; no more than `limit` bytes."""
        bundle = self._ask("GET", f"{_signatures_path(version)}/{key}")["bundle"]
        return None if bundle is None else base64.b64decode(bundle)[:limit]

    def _keep(self, version: Version, key: PublicKey, bundle: bytes) -> None:
        body = {"public_key": key.pem.decode(), "bundle": base64.b64encode(bundle).decode()}
        self._ask("POST", _signatures_path(version), body)


def _signatures_path(version: Version) -> str:
    return f"{version_path(Reference.parse(version.pinned))}/signatures"
