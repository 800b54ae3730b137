"""What the registry answers: one version, and everything under a name."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Version:
    """One version of an adapter. `digest` is its identity everywhere inside; `created_at` is RFC 3339, UTC."""

    name: str
    version: int
    digest: str
    created_at: str
    yanked: bool = False
    yank_reason: str | None = None

    @property
    def pinned(self) -> str:
        """`TENANT/NAME@sha256:HEX`, which never means anything else."""
        return f"{self.name}@{self.digest}"

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


@dataclass(frozen=True, slots=True)
class AliasMove:
    """An alias was pointed to a version, at a time (RFC 3339, UTC)."""

    alias: str
    version: int
    at: str


@dataclass(frozen=True, slots=True)
class Listing:
    """An adapter's versions (oldest first), its aliases with `latest`, and all moves of aliases (oldest first)."""

    name: str
    versions: tuple[Version, ...]
    aliases: dict[str, int]
    history: tuple[AliasMove, ...]
