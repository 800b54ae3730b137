"""The head of one adapter name: its versions, aliases and their history, as one small document.

Everything here is pure: a transition takes a head and gives the next. The registry writes heads with
compare-and-swap, so each transition happens once and in order, whoever writes.
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from swapmeet_registry.errors import Conflict, NotFound
from swapmeet_registry.manifest import Timestamp
from swapmeet_registry.names import LATEST, AdapterName, Reference, require_settable_alias
from swapmeet_registry.provenance import Digest, Document


class Record(BaseModel):
    """One version: `publish` is its publisher's nonce, `yanked` the reason why it was withdrawn, if it was."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(ge=1)
    digest: Digest
    created_at: Timestamp
    publish: str
    yanked: str | None = None


class Move(BaseModel):
    """An alias was pointed to a version, at a time (RFC 3339, UTC)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alias: str
    version: int
    at: Timestamp


class Head(Document):
    """All versions of one adapter in order, its aliases, and every move of an alias in order."""

    schema_: Literal["swapmeet.head/1"] = Field("swapmeet.head/1", alias="schema")
    adapter: str
    versions: tuple[Record, ...] = ()
    aliases: dict[str, int] = Field(default_factory=dict)
    history: tuple[Move, ...] = ()

    @property
    def latest(self) -> Record | None:
        """The newest version that is not yanked."""
        return next((record for record in reversed(self.versions) if record.yanked is None), None)

    def published(self, nonce: str) -> Record | None:
        """The version that a publish with this nonce made, if it did."""
        return next((record for record in self.versions if record.publish == nonce), None)

    def find(self, reference: Reference) -> Record:
        """The version that a reference names, yanked or not.

        Raises:
            NotFound: there is none.
        """
        wanted = self._wanted(reference)
        for record in self.versions:
            if record.version == wanted or record.digest == reference.digest:
                return record
        aliases = ", ".join(sorted(self.aliases)) or "none"
        yanked = "" if self.latest else " Every one of them was yanked."
        raise NotFound(
            f"There is no {reference}. {self.adapter} has versions 1 to {len(self.versions)} and the aliases: "
            f"{aliases}.{yanked}"
        )

    def resolve(self, reference: Reference) -> Record:
        """The version that a reference names, for use.

        A yanked version answers to its digest only, so that whoever pinned it is not broken.

        Raises:
            NotFound: there is none, or it was yanked; then the message says why.
        """
        record = self.find(reference)
        if record.yanked is not None and reference.digest is None:
            raise NotFound(
                f"{self.adapter}:{record.version} was yanked: {record.yanked}. Use another version, or pin it by "
                f"its digest as {self.adapter}@{record.digest}."
            )
        return record

    def publish(self, digest: str, created_at: str, nonce: str) -> Self:
        """Add the next version; numbers start at 1 and are never used again.

        Raises:
            Conflict: this manifest is a version already.
        """
        if any(record.digest == digest for record in self.versions):
            raise Conflict(f"{self.adapter}@{digest} is published already. Push again to make a new version.")
        record = Record(version=len(self.versions) + 1, digest=digest, created_at=created_at, publish=nonce)
        return self._with(versions=(*self.versions, record))

    def tag(self, alias: str, version: int, at: str, expect: int | None = None) -> Self:
        """Point an alias to a version.

        Args:
            alias: any alias but `latest`.
            version: an existing version.
            at: the time, RFC 3339, UTC.
            expect: the version that the alias must point to now; 0: it must not exist; None: either.

        Raises:
            Conflict: the alias points elsewhere than expected.
            InvalidName: the alias is misspelt or may not be set.
            NotFound: there is no such version, or it was yanked.
        """
        require_settable_alias(alias)
        self.resolve(Reference(AdapterName.parse(self.adapter), version=version))
        now = self.aliases.get(alias, 0)
        if expect is not None and now != expect:
            state = f"points to version {now}" if now else "does not exist"
            raise Conflict(f"The alias {self.adapter}:{alias} {state}, not {expect}. Look again before you move it.")
        if now == version:
            return self
        move = Move(alias=alias, version=version, at=at)
        return self._with(aliases={**self.aliases, alias: version}, history=(*self.history, move))

    def yank(self, version: int, reason: str) -> Self:
        """Withdraw a version, which keeps its number and its files; a second yank replaces the reason."""
        records = (r.model_copy(update={"yanked": reason}) if r.version == version else r for r in self.versions)
        return self._with(versions=tuple(records))

    def _wanted(self, reference: Reference) -> int | None:
        if reference.version is not None or reference.digest is not None:
            return reference.version
        if reference.alias in (None, LATEST):
            return self.latest.version if self.latest else None
        return self.aliases.get(str(reference.alias))

    def _with(self, **changes: object) -> Self:
        return self.model_copy(update=changes)
