"""Whose signatures count, and what happens to a version that has none of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from swapmeet_registry.errors import SigningKeyInvalid
from swapmeet_registry.signing.keys import PublicKey

Policy = Literal["off", "warn", "require"]


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key, and its file's name in the folder, such as `ci.pem` or `acme/ci.pem`."""

    name: str
    key: PublicKey


@dataclass(frozen=True, slots=True)
class Trust:
    """What is asked of signatures.

    The keys are read anew each time: a file that is added or removed counts from the next pull on. Nothing is cached
    that outlives a key.

    Attributes:
        policy: `require` refuses a version without a good signature of a trusted key, `warn` only says so, and `off`
            does not look.
        keys: a folder of public keys in PEM: `*.pem` for adapters of all tenants, `TENANT/*.pem` for those of one. Or
            one such file.

    Raises:
        SigningKeyInvalid: the policy needs keys, and none are named.
    """

    policy: Policy = "off"
    keys: Path | None = None

    def __post_init__(self) -> None:
        if self.policy != "off" and self.keys is None:
            raise SigningKeyInvalid(
                f"Signatures can not be checked ({self.policy}) without trusted keys. Name a folder of PEM files."
            )

    def keys_for(self, tenant: str | None = None) -> tuple[TrustedKey, ...]:
        """The keys that are trusted for a tenant's adapters; without one, those that are for all tenants'.

        Raises:
            SigningKeyInvalid: the folder is gone, or a file in it holds no public key.
        """
        if self.keys is None:
            return ()
        try:
            named = _named(self.keys, tenant)
        except OSError as error:
            raise SigningKeyInvalid(f"{self.keys} can not be read ({error.strerror}). Let Swapmeet read it.") from error
        return tuple(TrustedKey(name, PublicKey.read(path)) for name, path in sorted(named.items()))


OFF = Trust()


def _named(keys: Path, tenant: str | None) -> dict[str, Path]:
    if keys.is_file():
        return {keys.name: keys}
    if not keys.is_dir():
        raise SigningKeyInvalid(f"{keys} is no folder of trusted keys. Put it there, or name another.")
    own = _pem_files(keys / tenant, f"{tenant}/") if tenant is not None else ()
    return {**dict(_pem_files(keys, "")), **dict(own)}


def _pem_files(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix == ".pem" and not path.name.startswith(".") and path.is_file():
            yield prefix + path.name, path
