"""What happens to versions once they are published: aliases move, versions are withdrawn, names are shared."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from swapmeet_registry.errors import Conflict, Refused
from swapmeet_registry.head import Head, Move, Visibility, Withdrawal
from swapmeet_registry.heads import Heads
from swapmeet_registry.names import LATEST, AdapterName, Reference, require_tenant
from swapmeet_registry.version import Listing, Version

MAX_REASON = 2000
"""Letters of a reason: whoever resolves a name reads its head, and so all reasons in it."""
MOST_READERS = 1000
"""Tenants that an adapter is shared with by name."""


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A version that was withdrawn; `first` where it was not in this way until then: only one of several is told so."""

    version: Version
    first: bool


class Life:
    """The changes to heads, each one compare-and-swap of one head. `by` is who does it, for the history.

    `once` is a name for a move of an alias: the same move again, after a lost answer, is known by it and changes
    nothing, whatever was expected, and whoever moved the alias since. Of a move that changed nothing, nothing is known.
    """

    def __init__(self, heads: Heads) -> None:
        self._heads = heads

    def tag(
        self,
        name: str,
        alias: str,
        ref: str,
        expect: int | None = None,
        by: str | None = None,
        once: str | None = None,
    ) -> Version:
        """Point an alias to a version.

        Args:
            name: `TENANT/NAME`.
            alias: any but `latest`.
            ref: a version of the same adapter: `T/N:3`, or only `3`, another alias or a digest.
            expect: the version that the alias must point to now; 0: it must not exist yet; None: either.
            by: who moves it.
            once: the move's own name.

        Returns:
            The version that the alias was pointed to.

        Raises:
            Conflict: the alias points elsewhere than expected, or `once` stands for another move.
            NotFound: there is no such version, or it was withdrawn.
            Recalled: it was recalled.
        """
        target = AdapterName.parse(name)
        reference = Reference.within(target, ref)

        def move(head: Head) -> Head:
            made = head.moved(alias, once)
            if made is None:
                return head.tag(alias, head.resolve(reference).version, now(), expect, by, once)
            fixed = reference.version is not None or reference.digest is not None
            same = made.version and (not fixed or made.version == head.find(reference).version)
            return _if_same(head, made, bool(same))

        head = self._heads.change(target, move)
        made = head.moved(alias, once)
        return Version.of(head, head.versions[(made.version if made else head.aliases[alias]) - 1])

    def untag(
        self, name: str, alias: str, expect: int | None = None, by: str | None = None, once: str | None = None
    ) -> Listing:
        """Remove an alias.

        Raises:
            Conflict: the alias points elsewhere than expected, or `once` stands for another move.
            NotFound: there is no such adapter.
        """

        def move(head: Head) -> Head:
            made = head.moved(alias, once)
            if made is None:
                return head.untag(alias, now(), expect, by, once)
            return _if_same(head, made, not made.version)

        return self._change(name, move)

    def undo(self, name: str, alias: str, by: str | None = None, once: str | None = None) -> Listing:
        """Point an alias to where it pointed before its last move, or remove it if it was new then.

        Doing so twice changes nothing, unless it is the same undo by `once`.

        Raises:
            Conflict: somebody else moved it at the same time.
            NotFound: it was never moved, or the version it would point to was withdrawn.
            Recalled: that version was recalled.
        """
        head = self._heads.get(AdapterName.parse(name))
        if head.moved(alias, once):
            return Listing.of(head)
        version, expect, moment = head.before(alias), head.aliases.get(alias, 0), now()
        if not version:
            return self._change(name, lambda head: head.untag(alias, moment, expect, by, once))
        return self._change(name, lambda head: head.tag(alias, version, moment, expect, by, once))

    def yank(self, ref: str, reason: str) -> Version:
        """Withdraw a version: from then on only its digest finds it. Its number is not used again.

        Once more is no error, and changes nothing but the reason and the time.

        Args:
            ref: a version, an alias of it, or its digest.
            reason: told to whoever asks for the version.

        Raises:
            NotFound: there is no such version.
            Refused: the reason is empty, too long or no plain text, or no version is named: the newest is another after
                each yank.
        """
        return self.withdraw(ref, "yanked", reason).version

    def recall(self, ref: str, reason: str) -> Version:
        """Forbid a version to everybody, by whatever name; servers that have it stop serving it. Else as `yank`."""
        return self.withdraw(ref, "recalled", reason).version

    def delete(self, ref: str, reason: str) -> Version:
        """Delete a version for good: nobody finds it, and its files go with the next collection. Else as `yank`."""
        return self.withdraw(ref, "deleted", reason).version

    def delete_all(self, name: str, reason: str) -> tuple[Version, ...]:
        """Delete every version of a name that is not deleted yet; the name stays taken. Else as `yank`.

        Returns:
            Those that were deleted just now.
        """
        listing = Listing.of(self._heads.get(AdapterName.parse(name)))
        return tuple(self.delete(str(each), reason) for each in listing.versions if each.deleted is None)

    def share(self, name: str, visibility: Visibility, tenants: Iterable[str] = ()) -> Listing:
        """Say who may read an adapter.

        Args:
            name: `TENANT/NAME`.
            visibility: `private` for its owner only, `shared` also for `tenants`, `public` for all.
            tenants: by name.

        Raises:
            InvalidName: a tenant is misspelt.
            NotFound: there is no such adapter.
            Refused: tenants are named that the visibility does not ask for, none that it does, or too many.
        """
        named = tuple(require_tenant(tenant) for tenant in tenants)
        if len(named) > MOST_READERS:
            raise Refused(
                f"An adapter is shared with at most {MOST_READERS} tenants by name. Make it public, or share less."
            )
        if bool(named) != (visibility == "shared"):
            raise Refused("Name tenants with the visibility 'shared', and only with it.")
        return self._change(name, lambda head: head.share(visibility, named))

    def withdraw(self, ref: str, how: Withdrawal, reason: str) -> Withdrawn:
        """As `yank`, `recall` or `delete`, for whoever has to know whether it was the first to do so."""
        reference = Reference.parse(ref)
        if reference.version is None and reference.digest is None and reference.alias in (None, LATEST):
            raise Refused(
                f"Which version of {reference.name}? The newest is another once this one is withdrawn. Name its number."
            )
        why = readable(reason)
        record = self._heads.get(reference.name).find(reference)
        place, moment = record.version - 1, now()
        first = False

        def change(head: Head) -> Head:
            nonlocal first
            before = head.versions[place]
            own = (getattr(before, how), before.withdrawn_at) == (why, moment)  # the answer to an earlier try was lost
            first = own or getattr(before, how) is None
            return head.withdraw(before.version, how, why, moment)

        head = self._heads.change(reference.name, change)
        return Withdrawn(Version.of(head, head.versions[place]), first)

    def _change(self, name: str, change: Callable[[Head], Head]) -> Listing:
        return Listing.of(self._heads.change(AdapterName.parse(name), change))


def _if_same(head: Head, made: Move, same: bool) -> Head:
    """A head that stays as it is, because the move was made before; if it was the same one."""
    if not same:
        done = f"pointed to version {made.version}" if made.version else "removed"
        raise Conflict(f"This idempotency key stands for another move: {made.alias} was {done} by it. Choose another.")
    return head


def now() -> str:
    """The time as heads and manifests have it: RFC 3339, UTC, to the microsecond."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def readable(reason: str) -> str:
    """A reason as it is kept: on one line.

    Raises:
        Refused: it is empty, too long, or holds what can not be printed.
    """
    why = " ".join(reason.split())
    if not why:
        raise Refused("A withdrawal needs a reason, which users of the version will read. Give one.")
    if len(why) > MAX_REASON or not why.isprintable():
        raise Refused(f"A reason has at most {MAX_REASON} letters, and all can be printed. Write another.")
    return why
