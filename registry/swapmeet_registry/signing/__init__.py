"""Signatures of versions, in the OpenSSF model-signing format: who vouches for an adapter, whoever keeps the store.

`oms` has what is signed and the document that says so, `keys` the keys and the library that signs with them, `trust`
which keys are trusted for which tenant, `signatures` the signatures where versions are kept.
"""

from swapmeet_registry.signing.signatures import Signature, Signatures
from swapmeet_registry.signing.trust import OFF, Policy, Trust

__all__ = ["OFF", "Policy", "Signature", "Signatures", "Trust"]
