"""What the registry answers: one version, and everything under a name."""

from dataclasses import dataclass
from typing import Self

from swapmeet_registry.head import Head, Record, Visibility
from swapmeet_registry.names import LATEST


@dataclass(frozen=True, slots=True)
class Version:
    """One version of an adapter.

    Attributes:
        digest: its identity everywhere inside.
        created_at: RFC 3339, UTC.
        yanked: only its digest finds it.
        yank_reason: why.
        recalled: why nobody may use it any more.
        deleted: why its files are gone, or soon will be.
    """

    name: str
    version: int
    digest: str
    created_at: str
    yanked: bool = False
    yank_reason: str | None = None
    recalled: str | None = None
    deleted: str | None = None

    @classmethod
    def of(cls, head: Head, record: Record) -> Self:
        """A version as its head has it."""
        return cls(
            head.adapter,
            record.version,
            record.digest,
            record.created_at,
            record.yanked is not None,
            record.yanked,
            record.recalled,
            record.deleted,
        )

    @property
    def usable(self) -> bool:
        """Whether it was not withdrawn in any way."""
        return not self.yanked and self.recalled is None and self.deleted is None

    @property
    def pinned(self) -> str:
        """`TENANT/NAME@sha256:HEX`, which never means anything else."""
        return f"{self.name}@{self.digest}"

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


@dataclass(frozen=True, slots=True)
class AliasMove:
    """An alias was pointed to a version (0: was removed) at a time (RFC 3339, UTC), by whom if that is known."""

    alias: str
    version: int
    at: str
    by: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """An adapter's versions (oldest first), its aliases with `latest`, moves of aliases (oldest first), readers.

    Attributes:
        forgotten: how many older moves there were.
    """

    name: str
    versions: tuple[Version, ...]
    aliases: dict[str, int]
    history: tuple[AliasMove, ...]
    visibility: Visibility = "private"
    shared_with: tuple[str, ...] = ()
    forgotten: int = 0

    @classmethod
    def of(cls, head: Head) -> Self:
        """Everything that a head says."""
        latest = {LATEST: head.latest.version} if head.latest else {}
        return cls(
            name=head.adapter,
            versions=tuple(Version.of(head, record) for record in head.versions),
            aliases={**head.aliases, **latest},
            history=tuple(AliasMove(move.alias, move.version, move.at, move.by) for move in head.history),
            visibility=head.visibility,
            shared_with=head.shared_with,
            forgotten=head.forgotten,
        )

    def visible_to(self, tenant: str) -> bool:
        """Whether a tenant may know of the adapter and read it: as `Head.visible_to`."""
        return self.visibility == "public" or tenant in (self.name.partition("/")[0], *self.shared_with)
