"""Names of adapters and references to their versions.

    TENANT/NAME                     the newest version that is not yanked
    TENANT/NAME:latest              the same
    TENANT/NAME:3                   version 3
    TENANT/NAME:prod                what the alias `prod` points to
    TENANT/NAME@sha256:HEX          the version with this manifest digest

Because each part begins and ends with a letter or digit and holds no slash, no name can leave the folder
that it is a path in.
"""

import re
from dataclasses import dataclass
from typing import Self

from swapmeet_registry.errors import InvalidName

LATEST = "latest"
MAX_PART = 63

_PART = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PART_RULE = f"1 to {MAX_PART} characters of a-z, 0-9, '.', '_' and '-', beginning and ending with a letter or digit"


@dataclass(frozen=True, slots=True, order=True)
class AdapterName:
    """`TENANT/NAME`.

    Raises:
        InvalidName: a part is misspelt.
    """

    tenant: str
    name: str

    def __post_init__(self) -> None:
        for what, part in (("tenant", self.tenant), ("name", self.name)):
            if not _PART.fullmatch(part):
                raise InvalidName(
                    f"{_quoted(f'{self.tenant}/{self.name}')} is not an adapter name: its {what} must be {_PART_RULE}."
                )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `TENANT/NAME`."""
        tenant, slash, name = text.partition("/")
        if not slash:
            raise InvalidName(f"{_quoted(text)} is not an adapter name. Write TENANT/NAME, such as acme/legal.")
        return cls(tenant, name)

    def __str__(self) -> str:
        return f"{self.tenant}/{self.name}"


@dataclass(frozen=True, slots=True)
class Reference:
    """One version of an adapter: by number, by alias, by digest, or (with none of them) the latest.

    Raises:
        InvalidName: more than one of them is given, or one is misspelt.
    """

    name: AdapterName
    version: int | None = None
    alias: str | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        if sum(pick is not None for pick in (self.version, self.alias, self.digest)) > 1:
            raise InvalidName("A reference gives a version, an alias or a digest: only one of them.")
        if self.version is not None:
            _require_version(str(self.version))
        if self.alias is not None:
            _require_alias(self.alias)
        if self.digest is not None:
            require_digest(self.digest)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `T/N`, `T/N:3`, `T/N:alias` or `T/N@sha256:HEX`."""
        head, at, digest = text.partition("@")
        if at:
            return cls(AdapterName.parse(head), digest=digest)
        head, colon, pick = text.partition(":")
        name = AdapterName.parse(head)
        if not colon:
            return cls(name)
        if pick.isdecimal():
            _require_version(pick)
            return cls(name, version=int(pick))
        return cls(name, alias=pick)

    @classmethod
    def within(cls, name: AdapterName, text: str) -> Self:
        """Read a reference to a version of `name`, whole or only what follows it (`3`, `prod`, `sha256:HEX`)."""
        if "/" not in text:
            text = f"{name}{'@' if text.startswith('sha256:') else ':'}{text}"
        reference = cls.parse(text)
        if reference.name != name:
            raise InvalidName(f"{_quoted(text)} is no version of {name}. Name a version of the same adapter.")
        return reference

    def __str__(self) -> str:
        if self.digest is not None:
            return f"{self.name}@{self.digest}"
        pick = self.version if self.version is not None else self.alias
        return str(self.name) if pick is None else f"{self.name}:{pick}"


def is_tenant(text: str) -> bool:
    """Whether a tenant could go by this name."""
    return _PART.fullmatch(text) is not None


def require_tenant(text: str) -> str:
    """Give a tenant's name back.

    Raises:
        InvalidName: it is misspelt.
    """
    if not is_tenant(text):
        raise InvalidName(f"{_quoted(text)} is not a tenant's name: it must be {_PART_RULE}.")
    return text


def require_digest(text: str) -> str:
    """Give `sha256:HEX` back.

    Raises:
        InvalidName: it is misspelt.
    """
    if not _DIGEST.fullmatch(text):
        raise InvalidName(f"{_quoted(text)} is not a digest. Write sha256: and 64 of the characters 0-9 and a-f.")
    return text


def require_settable_alias(text: str) -> str:
    """Give an alias back that a user may set.

    Raises:
        InvalidName: it is misspelt, a number, or `latest`.
    """
    _require_alias(text)
    if text == LATEST:
        raise InvalidName(f"The alias {LATEST!r} follows the newest version by itself. Choose another.")
    return text


def _require_alias(text: str) -> None:
    if not _PART.fullmatch(text) or text.isdecimal():
        raise InvalidName(f"{_quoted(text)} is not an alias: it must be {_PART_RULE}, and not a number.")


def _require_version(text: str) -> None:
    if not _VERSION.fullmatch(text):
        raise InvalidName(f"{_quoted(text)} is not a version. Versions are whole numbers from 1, such as 3.")


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 200 else text[:200] + "…")
