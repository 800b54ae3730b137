"""A plugin by which vLLM serves adapters of a registry by name, and by digest inside.

    pip install swapmeet                      # beside vLLM, which finds the plugin by itself
    export SWAPMEET_REGISTRY=s3://BUCKET/PREFIX
    export SWAPMEET_VLLM_TENANTS=acme,ben     # whose adapters; * for everybody's
    export SWAPMEET_VLLM_CACHE=/var/cache/adapters
    export VLLM_ALLOW_RUNTIME_LORA_UPDATING=1
    vllm serve models/smollm2-135m --enable-lora

Now `"model": "acme/legal:prod"` is answered by the version that `prod` pointed to when vLLM was first asked for it.
vLLM keeps the names that it knows: after an alias moved, tell it with `/v1/unload_lora_adapter`, or ask for
`acme/legal@sha256:HEX`. Whatever name is asked for, inside it has the digest, and so have the keys of its KV cache, so
that no version is answered from another's.

    SWAPMEET_REGISTRY         where adapters are kept; without it the plugin does nothing
    SWAPMEET_VLLM_TENANTS     whose adapters may be served, with commas between, or *
    SWAPMEET_VLLM_CACHE       a folder for them (~/.cache/swapmeet/vllm)
    SWAPMEET_VLLM_CACHE_BYTES what they may take there (32 GiB); those in use are never deleted
    SWAPMEET_BASE             the folder of the base that vLLM serves, where vLLM was given no folder
    SWAPMEET_SIGNATURES       off, warn, or require: serve only what a trusted key signed
    SWAPMEET_TRUSTED_KEYS     a folder of these public keys (`signing.Trust`)
"""

import asyncio
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, cast, get_args

from swapmeet_registry.copies.held_folders import HeldFolders
from swapmeet_registry.errors import (
    BaseMismatch,
    BaseNotFound,
    Corrupt,
    InvalidName,
    NotFound,
    Recalled,
    Refused,
    SignatureInvalid,
)
from swapmeet_registry.fingerprint import Fingerprint, fingerprint
from swapmeet_registry.names import Reference, require_tenant
from swapmeet_registry.registry import Registry
from swapmeet_registry.signing.trust import OFF, Policy, Trust
from swapmeet_registry.version import Version

NAME = "swapmeet"
ALL = "*"
CACHE, CACHE_BYTES = "~/.cache/swapmeet/vllm", 32 << 30
_LARGEST_ID = 2**31 - 1
_log = logging.getLogger("vllm.swapmeet")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says.

    Args:
        registry: the registry's URL.
        tenants: whose adapters may be served; None for everybody's.
        cache: a folder for adapters.
        cache_bytes: what they may take.
        base: the folder of the base; None for the one that vLLM names.
        trust: whose signatures adapters must bear.
    """

    registry: str
    tenants: frozenset[str] | None
    cache: Path
    cache_bytes: int = CACHE_BYTES
    base: Path | None = None
    trust: Trust = OFF

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self | None:
        """The settings, or None where no registry is named.

        Raises:
            InvalidName: a value can not be used.
            SigningKeyInvalid: signatures are asked for, and no trusted keys are named.
        """
        registry = environment.get("SWAPMEET_REGISTRY", "")
        if not registry:
            return None
        tenants = [each.strip() for each in environment.get("SWAPMEET_VLLM_TENANTS", "").split(",") if each.strip()]
        if not tenants:
            raise InvalidName(
                "SWAPMEET_VLLM_TENANTS is not set, and vLLM asks nobody who he is. Name the tenants whose adapters "
                f"everybody may use, as acme,ben, or write {ALL}."
            )
        size = environment.get("SWAPMEET_VLLM_CACHE_BYTES", str(CACHE_BYTES))
        if not (size.isascii() and size.isdecimal() and int(size[:20])):
            raise InvalidName(f"SWAPMEET_VLLM_CACHE_BYTES is {size[:80]!r}. Give a whole number of bytes.")
        policy = environment.get("SWAPMEET_SIGNATURES") or "off"
        if policy not in get_args(Policy):
            raise InvalidName(f"SWAPMEET_SIGNATURES is {policy[:80]!r}. Set it to {', '.join(get_args(Policy))}.")
        base, keys = environment.get("SWAPMEET_BASE", ""), environment.get("SWAPMEET_TRUSTED_KEYS", "")
        return cls(
            registry,
            None if ALL in tenants else frozenset(map(require_tenant, tenants)),
            Path(environment.get("SWAPMEET_VLLM_CACHE") or CACHE).expanduser(),
            int(size),
            Path(base).expanduser() if base else None,
            Trust(cast(Policy, policy), Path(keys).expanduser().resolve() if keys else None),
        )


class Resolver:
    """What vLLM calls a `LoRAResolver`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._registry = Registry(settings.registry, settings.trust)
        self._folders = HeldFolders(settings.cache, self._registry, settings.cache_bytes)
        self._bases: dict[str, Fingerprint] = {}
        self._lock = threading.Lock()

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
        """The `LoRARequest` of an adapter; None where there is none that may be used, of which the log says why.

        Raises:
            BaseNotFound: it is not known which base this is.
            StoreError: the registry or the cache can not be reached, or is full.
        """
        found = await asyncio.to_thread(self._find, base_model_name, lora_name)
        if found is None:
            return None
        from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]  # its process has it

        version, folder = found
        return LoRARequest(lora_name=version.pinned, lora_int_id=int_id(version.digest), lora_path=str(folder))

    def close(self) -> None:
        """Let others delete the folders that were handed out."""
        self._folders.close()

    def _find(self, base_model_name: str, lora_name: str) -> tuple[Version, Path] | None:
        tell = partial(_log.warning, "%s is not served: %s", lora_name[:300])
        try:
            tenant = Reference.parse(lora_name).name.tenant
            if self._settings.tenants is not None and tenant not in self._settings.tenants:
                raise NotFound(f"SWAPMEET_VLLM_TENANTS does not name {tenant}.")
            version = self._registry.resolve(lora_name)
            return version, self._folders.fetch(version, self._base(base_model_name))
        except (InvalidName, NotFound, Recalled, BaseMismatch, Corrupt, Refused, SignatureInvalid) as error:
            tell(error)
            return None

    def _base(self, name: str) -> Fingerprint:
        """The fingerprint of the base; the first time, its weights are read."""
        folder = self._settings.base or Path(name).expanduser()
        with self._lock:
            if name not in self._bases:
                if not folder.is_dir():
                    raise BaseNotFound(f"{folder} is no folder. Set SWAPMEET_BASE to the folder with {name}'s weights.")
                self._bases[name] = fingerprint(folder, name, cache=self._settings.cache / ".fingerprints")
            return self._bases[name]


def int_id(digest: str) -> int:
    """A number from 1 that goes with a digest, and fits into 32 bits; vLLM may choose another."""
    return 1 + int(digest.removeprefix("sha256:")[:15], 16) % _LARGEST_ID


def register() -> None:
    """What vLLM calls as it loads its plugins, in each of its processes.

    Raises:
        InvalidName: a setting can not be used.
    """
    settings = Settings.read(os.environ)
    if settings is None:
        return
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry  # type: ignore[import-not-found]

    LoRAResolver.register(Resolver)
    if NAME not in LoRAResolverRegistry.get_supported_resolvers():
        LoRAResolverRegistry.register_resolver(NAME, Resolver(settings))
