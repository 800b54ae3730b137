"""Versions of LoRA adapters, bound to the bytes of the base they were trained on.

    >>> from pathlib import Path
    >>> from swapmeet_registry import Registry
    >>> from swapmeet_registry.fingerprint import fingerprint
    >>> base = fingerprint(Path("models/smollm2-135m"), "smollm2-135m")  # doctest: +SKIP
    >>> registry = Registry("file:///var/lib/adapters")  # or "s3://bucket/prefix", "hf://acme"
    >>> version = registry.push(Path("out/adapter"), "acme/legal", base=base, alias="prod")  # doctest: +SKIP
    >>> print(version, version.digest)  # doctest: +SKIP
    acme/legal:1 sha256:90d3…
    >>> registry.pull("acme/legal:prod", Path("legal"), base=base)  # doctest: +SKIP

A publish is atomic, every read is checked against its SHA-256, and a wrong base is refused with both digests.
Importing this loads neither torch nor boto3 nor huggingface_hub; the latter two come with the first `s3://` or `hf://`
address.
"""

from typing import TYPE_CHECKING

from swapmeet_registry.errors import (
    BaseInvalid,
    BaseMismatch,
    BaseNotFound,
    Conflict,
    Corrupt,
    IndexFailed,
    InvalidName,
    InvalidQuery,
    NotFound,
    Recalled,
    Refused,
    RegistryError,
    SignatureInvalid,
    SigningKeyInvalid,
    StoreDenied,
    StoreError,
    StoreFull,
    Unsound,
)
from swapmeet_registry.on_demand import on_demand as _on_demand

if TYPE_CHECKING:
    from swapmeet_registry.fingerprint import Fingerprint, Quantization, require_fit
    from swapmeet_registry.manifest import Lora, Manifest, StoredFile
    from swapmeet_registry.names import AdapterName, Reference
    from swapmeet_registry.origin.provenance import Provenance
    from swapmeet_registry.registry import Registry
    from swapmeet_registry.signing import Signature, Trust
    from swapmeet_registry.stores import Store, open_store
    from swapmeet_registry.version import Listing, Version

__all__ = [
    "AdapterName",
    "BaseInvalid",
    "BaseMismatch",
    "BaseNotFound",
    "Conflict",
    "Corrupt",
    "Fingerprint",
    "IndexFailed",
    "InvalidName",
    "InvalidQuery",
    "Listing",
    "Lora",
    "Manifest",
    "NotFound",
    "Provenance",
    "Quantization",
    "Recalled",
    "Reference",
    "Refused",
    "Registry",
    "RegistryError",
    "Signature",
    "SignatureInvalid",
    "SigningKeyInvalid",
    "Store",
    "StoreDenied",
    "StoreError",
    "StoreFull",
    "StoredFile",
    "Trust",
    "Unsound",
    "Version",
    "open_store",
    "require_fit",
]

__getattr__ = _on_demand(
    __name__,
    {
        "fingerprint": "Fingerprint Quantization require_fit",
        "manifest": "Lora Manifest StoredFile",
        "names": "AdapterName Reference",
        "origin.provenance": "Provenance",
        "registry": "Registry",
        "signing": "Signature Trust",
        "stores": "Store open_store",
        "version": "Listing Version",
    },
)
