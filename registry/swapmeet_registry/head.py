"""The head of one adapter name: its versions, aliases and their history, as one small document.

Everything here is pure: a transition takes a head and gives the next. The registry writes heads with
compare-and-swap, so each transition happens once and in order, whoever writes.
"""

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, FailFast, Field

from swapmeet_registry.errors import Conflict, NotFound, Recalled
from swapmeet_registry.manifest import Timestamp
from swapmeet_registry.names import LATEST, AdapterName, Reference, require_settable_alias
from swapmeet_registry.origin.provenance import Digest, Document

Visibility = Literal["private", "shared", "public"]
Withdrawal = Literal["yanked", "recalled", "deleted"]

MOST_MOVES, KEPT_MOVES = 400, 200
"""A head is read whenever a name is resolved: beyond so many moves of aliases the oldest go, down to so many."""


class Record(BaseModel):
    """One version. `publish` is its publisher's nonce; the last three are why it was withdrawn, if it was.

    Attributes:
        yanked: nobody gets it who does not name its digest.
        recalled: nobody gets it, and servers that have it stop serving it.
        deleted: as recalled, and its files are gone sooner or later; its number stays taken.
        withdrawn_at: when the last of it happened.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(ge=1)
    digest: Digest
    created_at: Timestamp
    publish: str
    yanked: str | None = None
    recalled: str | None = Field(None, exclude_if=lambda reason: reason is None)
    deleted: str | None = Field(None, exclude_if=lambda reason: reason is None)
    withdrawn_at: Timestamp | None = Field(None, exclude_if=lambda at: at is None)

    @property
    def usable(self) -> bool:
        """Whether it was not withdrawn in any way."""
        return self.yanked is None and self.recalled is None and self.deleted is None


class Move(BaseModel):
    """An alias was pointed to a version (0: was removed) at a time (RFC 3339, UTC), by whom if that is known.

    `nonce` is the mover's, by which he knows his own move again; it is left out where he gave none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    alias: str
    version: int
    at: Timestamp
    by: str | None = Field(None, exclude_if=lambda by: by is None)
    nonce: str | None = Field(None, exclude_if=lambda nonce: nonce is None)


class Head(Document):
    """All versions of one adapter in order, its aliases, moves of aliases in order, and who may read it.

    Attributes:
        history: the newest moves, and the last two of each alias.
        forgotten: how many older ones there were.
    """

    schema_: Literal["swapmeet.head/1"] = Field("swapmeet.head/1", alias="schema")
    adapter: str
    versions: Annotated[tuple[Record, ...], FailFast()] = ()
    aliases: dict[str, int] = Field(default_factory=dict)
    history: Annotated[tuple[Move, ...], FailFast()] = ()
    forgotten: int = Field(0, ge=0, exclude_if=lambda count: not count)
    visibility: Visibility = Field("private", exclude_if=lambda visibility: visibility == "private")
    shared_with: tuple[str, ...] = Field((), exclude_if=lambda tenants: not tenants)

    @property
    def latest(self) -> Record | None:
        """The newest version that was not withdrawn."""
        return next((record for record in reversed(self.versions) if record.usable), None)

    def visible_to(self, tenant: str) -> bool:
        """Whether a tenant may know of the adapter and read it."""
        owner = AdapterName.parse(self.adapter).tenant
        return tenant == owner or self.visibility == "public" or tenant in self.shared_with

    def published(self, nonce: str) -> Record | None:
        """The version that a publish with this nonce made, if it did."""
        return next((record for record in self.versions if record.publish == nonce), None)

    def moved(self, alias: str, nonce: str | None) -> Move | None:
        """The move of an alias that was made with this nonce, if it was and is not forgotten."""
        moves = (move for move in reversed(self.history) if (move.alias, move.nonce) == (alias, nonce))
        return next(moves, None) if nonce is not None else None

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
        withdrawn = "" if self.latest else " Every one of them was withdrawn."
        raise NotFound(
            f"There is no {reference}. {self.adapter} has versions 1 to {len(self.versions)} and the aliases: "
            f"{aliases}.{withdrawn}"
        )

    def resolve(self, reference: Reference) -> Record:
        """The version that a reference names, for use.

        A yanked version answers to its digest only, so that whoever pinned it is not broken.

        Raises:
            NotFound: there is none, or it was yanked or deleted; then the message says why.
            Recalled: it was recalled.
        """
        record = self.find(reference)
        what = f"{self.adapter}:{record.version}"
        if record.deleted is not None:
            raise NotFound(f"{what} was deleted: {record.deleted}. Use another version.")
        if record.recalled is not None:
            raise Recalled(f"{what} was recalled and must not be used: {record.recalled}. Use another version.")
        if record.yanked is not None and reference.digest is None:
            raise NotFound(
                f"{what} was yanked: {record.yanked}. Use another version, or pin it by "
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

    def tag(
        self,
        alias: str,
        version: int,
        at: str,
        expect: int | None = None,
        by: str | None = None,
        nonce: str | None = None,
    ) -> Self:
        """Point an alias to a version.

        Args:
            alias: any alias but `latest`.
            version: an existing version.
            at: the time, RFC 3339, UTC.
            expect: the version that the alias must point to now; 0: it must not exist; None: either.
            by: who does it, for the history.
            nonce: the move's own; one that was made is not made again, wherever the alias points by now.

        Raises:
            Conflict: the alias points elsewhere than expected.
            InvalidName: the alias is misspelt or may not be set.
            NotFound: there is no such version, or it was withdrawn.
            Recalled: it was recalled.
        """
        require_settable_alias(alias)
        if self.moved(alias, nonce):
            return self
        self.resolve(Reference(AdapterName.parse(self.adapter), version=version))
        self._expect(alias, expect)
        return self._move(alias, version, at, by, nonce)

    def untag(
        self, alias: str, at: str, expect: int | None = None, by: str | None = None, nonce: str | None = None
    ) -> Self:
        """Remove an alias; one that is not there stays so. The arguments: `tag`.

        Raises:
            Conflict: the alias points elsewhere than expected.
            InvalidName: the alias is misspelt, or is `latest`.
        """
        require_settable_alias(alias)
        if self.moved(alias, nonce):
            return self
        self._expect(alias, expect)
        return self._move(alias, 0, at, by, nonce)

    def before(self, alias: str) -> int:
        """The version that an alias pointed to before its last move; 0: it was new then.

        Raises:
            NotFound: it was never moved.
        """
        moves = [move for move in self.history if move.alias == alias]
        if not moves:
            raise NotFound(f"The alias {self.adapter}:{alias} was never set. Nothing is to be undone.")
        return moves[-2].version if len(moves) > 1 else 0

    def withdraw(self, version: int, how: Withdrawal, reason: str, at: str) -> Self:
        """Withdraw a version, which keeps its number; a second time replaces the reason and the time."""
        change = {how: reason, "withdrawn_at": at}
        records = (r.model_copy(update=change) if r.version == version else r for r in self.versions)
        return self._with(versions=tuple(records))

    def share(self, visibility: Visibility, tenants: tuple[str, ...] = ()) -> Self:
        """Say who may read the adapter: its owner only, also the tenants that are named, or all."""
        return self._with(visibility=visibility, shared_with=tuple(sorted(set(tenants))))

    def _expect(self, alias: str, expect: int | None) -> None:
        now = self.aliases.get(alias, 0)
        if expect is not None and now != expect:
            state = f"points to version {now}" if now else "does not exist"
            raise Conflict(f"The alias {self.adapter}:{alias} {state}, not {expect}. Look again before you move it.")

    def _move(self, alias: str, version: int, at: str, by: str | None, nonce: str | None) -> Self:
        if self.aliases.get(alias, 0) == version:
            return self
        aliases = {name: target for name, target in self.aliases.items() if name != alias}
        if version:
            aliases[alias] = version
        history = (*self.history, Move(alias=alias, version=version, at=at, by=by, nonce=nonce))
        kept = _kept(history, aliases)
        forgotten = self.forgotten + len(history) - len(kept)
        return self._with(aliases=aliases, history=kept, forgotten=forgotten)

    def _wanted(self, reference: Reference) -> int | None:
        if reference.version is not None or reference.digest is not None:
            return reference.version
        if reference.alias in (None, LATEST):
            return self.latest.version if self.latest else None
        return self.aliases.get(str(reference.alias))

    def _with(self, **changes: object) -> Self:
        return self.model_copy(update=changes)


def _kept(history: tuple[Move, ...], aliases: Iterable[str]) -> tuple[Move, ...]:
    """What is kept of a history: all of a short one; else the newest, and what `before` needs of each alias."""
    if len(history) <= MOST_MOVES:
        return history
    needed = dict.fromkeys(aliases, 2)
    kept = []
    for age, move in enumerate(reversed(history)):
        wanted = needed.get(move.alias, 0)
        if age < KEPT_MOVES or wanted:
            kept.append(move)
        needed[move.alias] = max(0, wanted - 1)
    return tuple(reversed(kept))
