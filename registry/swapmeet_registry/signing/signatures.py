"""Signatures beside the versions that they are of, one for each key."""

import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from swapmeet_registry.backend import Backend
from swapmeet_registry.errors import SignatureInvalid
from swapmeet_registry.manifest import Manifest
from swapmeet_registry.names import AdapterName
from swapmeet_registry.signing import oms
from swapmeet_registry.signing.keys import PrivateKey, PublicKey
from swapmeet_registry.signing.trust import Trust, TrustedKey
from swapmeet_registry.version import Version

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature of a version.

    Attributes:
        key: the id of the key that it claims: the hex SHA-256 of its public PEM form.
        signer: the trusted key's file, or None where none of the trusted keys has this id: then nothing is known of it.
        problem: what is wrong with it, if the signer is known.
        named: whether it vouches for the adapter's name and manifest too, and not for the files only.
    """

    key: str
    signer: str | None = None
    problem: str | None = None
    named: bool = False

    @property
    def good(self) -> bool:
        """Whether it is a trusted key's, and sound."""
        return self.signer is not None and self.problem is None


class Bundles(Protocol):
    """Where signatures are had from."""

    def signers(self, version: Version) -> list[str]:
        """The ids of the keys that there are signatures of a version by, sorted."""
        ...

    def signature(self, version: Version, key: str, limit: int) -> bytes | None:
        """A version's signature by the key with this id, or None where there is none; no more than `limit` bytes."""
        ...


class Policy:
    """Asks for signatures as far as `trust` says, wherever they are had from."""

    def __init__(self, bundles: Bundles, trust: Trust) -> None:
        self._bundles, self.trust = bundles, trust

    def require(self, version: Version, manifest: Manifest) -> None:
        """Do as the policy says. One good signature of a trusted key is enough; what others put there is not read.

        Raises:
            SignatureInvalid: the policy is `require`, and there is none.
            SigningKeyInvalid: the trusted keys can not be read.
        """
        if self.trust.policy == "off":
            return
        trusted, problems = self._trusted(version), []
        for each in trusted:
            signature = self._checked(version, manifest, each)
            if signature is not None and signature.good:
                return
            if signature is not None:
                problems.append(f"{each.name}: {signature.problem}")
        why = f"those that are there do not count ({'; '.join(problems)})" if problems else "there is none"
        message = (
            f"{version} bears no good signature of the {len(trusted)} keys that are trusted for it: {why}. "
            f"Have it signed (swapmeet sign {version.pinned}), or trust its signer's key."
        )
        if self.trust.policy == "require":
            raise SignatureInvalid(message)
        _log.warning(message)

    def of(self, version: Version, manifest: Manifest) -> tuple[Signature, ...]:
        """The signatures that are kept of a version, those of trusted keys checked."""
        trusted = {each.key.id: each for each in self._trusted(version)}
        found = {key: Signature(key) for key in self._bundles.signers(version)}
        checked = {key: self._checked(version, manifest, trusted[key]) for key in trusted.keys() & found.keys()}
        known = found | {key: signature for key, signature in checked.items() if signature is not None}
        return tuple(known[key] for key in sorted(known))

    def _trusted(self, version: Version) -> tuple[TrustedKey, ...]:
        return self.trust.keys_for(AdapterName.parse(version.name).tenant)

    def _checked(self, version: Version, manifest: Manifest, trusted: TrustedKey) -> Signature | None:
        """A trusted key's signature, or None where there is none."""
        bundle = self._bundles.signature(version, trusted.key.id, oms.MAX_BUNDLE + 1)
        if bundle is None:
            return None
        try:
            named = oms.check(bundle, trusted.key, oms.Signed.of(version, manifest))
        except SignatureInvalid as error:
            return Signature(trusted.key.id, trusted.name, str(error))
        return Signature(trusted.key.id, trusted.name, named=named)


class Signatures(Policy):
    """Signs, and checks by what is trusted."""

    def __init__(self, backend: Backend, trust: Trust) -> None:
        super().__init__(backend, trust)
        self._backend = backend

    def sign(self, version: Version, manifest: Manifest, key: PrivateKey) -> Signature:
        """Sign a version; once more changes nothing."""
        self._backend.put_signature(version, key.public.id, oms.sign(oms.Signed.of(version, manifest), key))
        return Signature(key.public.id, named=True)

    def add(self, version: Version, manifest: Manifest, bundle: bytes, key: PublicKey) -> Signature:
        """Keep a signature that another tool made; one that is there already and says as much is not replaced.

        Raises:
            SignatureInvalid: it is not this key's, or not of this version.
        """
        signature = fitting(version, manifest, bundle, key)
        there = self._backend.signature(version, key.id, oms.MAX_BUNDLE + 1)
        if there is not None:
            with suppress(SignatureInvalid):
                kept = fitting(version, manifest, there, key)
                if kept.named or not signature.named:
                    return kept
        self._backend.put_signature(version, key.id, bundle)
        return signature


def fitting(version: Version, manifest: Manifest, bundle: bytes, key: PublicKey) -> Signature:
    """A signature that somebody made, once it was checked.

    Raises:
        SignatureInvalid: it is not this key's, or not of this version.
    """
    try:
        named = oms.check(bundle, key, oms.Signed.of(version, manifest))
    except SignatureInvalid as error:
        raise SignatureInvalid(f"The signature does not fit {version}: {error}. Sign it as it is pulled.") from None
    return Signature(key.id, named=named)
