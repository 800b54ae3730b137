"""Who may read or change which adapter: the one place that says so.

    own       its tenant, and the operator               read, and with the scope for it change
    shared    the tenants that its head names            read: list, resolve, pull, ask, train on
    public    everybody                                  the same
    granted   a tenant with a permission for a model     ask, train on and pull just what the permission names, by
                                                         that name, or by the digest of what the name means now
    else      nobody                                     as if there were no such name

The head says who may read a name (`Head.visible_to`), so a registry carries it along. Permissions are OpenAI's, name a
model rather than an adapter (`T/N:prod`, and not `T/N:3`), and stand in the database; either is enough.

What may not be read is not told from what is not there. Both are looked up in one table of what is shared, where
neither stands, and the registry is not asked: so both answers have the same words and take the same time.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from time import monotonic

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.tables import ReaderRow
from swapmeet.database.tables.adapters import EVERYBODY
from swapmeet.database.tables.base import now
from swapmeet.errors import Forbidden
from swapmeet.tenancy.caller import Caller
from swapmeet.tenancy.inserting import insert_on
from swapmeet.tenancy.tenants import require_tenants
from swapmeet_registry import AdapterName, Listing, NotFound, Reference, Registry, Version
from swapmeet_registry.head import Visibility
from swapmeet_registry.heads import absent
from swapmeet_registry.index.finding import readable
from swapmeet_registry.index.tables import VERSIONS
from swapmeet_registry.names import LATEST

AT_ONCE = 16
"""Heads that are read beside each other."""
REMEMBERED = 5.0
"""Seconds for which an adapter without a usable version is not looked at again."""


@dataclass(frozen=True, slots=True)
class AdapterAccess:
    """The rule, over one registry and one database. For any thread."""

    registry: Registry
    database: Database
    _unusable: dict[str, float] = field(default_factory=dict, init=False, compare=False, repr=False)
    """Names without a usable version, and until when that is taken to be so."""

    def may_read(self, caller: Caller, reference: str | Reference) -> bool:
        """Whether a caller may know of what a reference names, and use it.

        Raises:
            InvalidName: the reference is misspelt.
        """
        wanted = reference if isinstance(reference, Reference) else Reference.parse(reference)
        return self.may_list(caller, wanted.name) or self._granted(caller, wanted)

    def may_list(self, caller: Caller, name: AdapterName) -> bool:
        """Whether a caller may read all that is under a name, and not only what a permission opens."""
        if self._owns(caller, name):
            return True
        return self._noted(caller.tenant, name) and self._opened(caller.tenant, name) is not None

    def grants(self, caller: Caller, name: AdapterName) -> tuple[Reference, ...]:
        """What of a name a caller has permissions for."""
        behind = (f"{name}:", f"{name}@")
        found = [each for each in caller.shared if each == str(name) or each.startswith(behind)]
        return tuple(map(Reference.parse, sorted(found)))

    def resolve(self, caller: Caller, reference: Reference, look: Callable[[str], Version] | None = None) -> Version:
        """The version that a reference names.

        Args:
            caller: who asks.
            reference: what for.
            look: looks it up, instead of the registry itself.

        Raises:
            NotFound: there is none, or the caller may not know of it.
            Recalled: it was recalled.
        """
        if not self.may_read(caller, reference):
            raise absent(reference.name)
        try:
            return (look or self.registry.resolve)(str(reference))
        except NotFound:
            if self.may_list(caller, reference.name) or self._digest(reference) is not None:
                raise
            raise absent(reference.name) from None  # it would say which versions and aliases there are

    def listing(self, caller: Caller, name: AdapterName) -> Listing:
        """Everything under a name; whom it is shared with, and who moved aliases, is its owner's to know.

        Raises:
            NotFound: there is no such name, or the caller may not know of it.
        """
        if self._owns(caller, name):
            return self.registry.show(str(name))
        found = self._opened(caller.tenant, name) if self._noted(caller.tenant, name) else None
        if found is None:
            raise absent(name)
        return replace(found, shared_with=(), history=tuple(replace(move, by=None) for move in found.history))

    def require_own(self, caller: Caller, name: AdapterName) -> None:
        """Nothing, if a caller's keys may change what is under a name, as far as their scopes allow.

        Raises:
            Forbidden: it is another tenant's, which lets the caller read it.
            NotFound: it is another's, or nobody's.
        """
        if not self._owns(caller, name):
            self.listing(caller, name)
            raise Forbidden(
                f"{name} is {name.tenant}'s, and only {name.tenant} may change it. Publish under {caller.tenant}/."
            )

    def page(
        self, caller: Caller, owner: str | None = None, after: str | None = None, limit: int = 20
    ) -> tuple[list[Listing], bool]:
        """What a caller may read, its own first and then by name, and whether there is more.

        Args:
            caller: who asks.
            owner: only what is this tenant's.
            after: goes on behind this name, whether it is there or not.
            limit: most of them.
        """
        place = (after.partition("/")[0] != caller.tenant, after) if after is not None else (False, "")
        found: list[Listing] = []
        for name in self._readable(caller, owner):
            if (name.tenant != caller.tenant, str(name)) <= place:
                continue
            try:
                found.append(self.listing(caller, name))
            except NotFound:  # no longer shared
                continue
            if len(found) > limit:
                break
        return found[:limit], len(found) > limit

    def names(self, caller: Caller) -> list[str]:
        """The names that a caller may ask by, its own first: adapters, and models that it has permissions for.

        What was shared past the server stands here once the registry was counted; what no longer is, until then. An
        adapter of which every version was withdrawn is none to ask; where the index is behind, one that has a version
        again may be missing for `REMEMBERED` seconds.
        """
        found = self.database.read(partial(_usable, None if caller.operator else caller.tenant))
        known = list(map(str, self._readable(caller)))
        found |= self._usable_of([name for name in known if name not in found])
        listed = [name for name in known if name in found]
        there = set(self.registry.names()) if caller.shared else set()
        granted = {name for name in caller.shared if str(Reference.parse(name).name) in there}
        return listed + sorted(granted.difference(listed))

    def share(
        self, name: AdapterName, visibility: Visibility, tenants: Iterable[str] = (), by: Caller | None = None
    ) -> Listing:
        """Say who may read an adapter; the caller has been looked at (`require_own`).

        Raises:
            NotFound: there is no such adapter, or tenants can not be shared with (`require_tenants`).
            Refused: tenants are named that the visibility does not ask for, or none that it does.
        """
        wanted = sorted(set(tenants))
        self.database.read(lambda session: require_tenants(session, wanted, by))
        listing = self.registry.share(str(name), visibility, wanted)
        self.database.write(lambda session: _note(session, listing))
        return listing

    def _granted(self, caller: Caller, wanted: Reference) -> bool:
        """Whether a permission names this, or a version that has this digest: whoever may ask for it is told that."""
        grants = self.grants(caller, wanted.name)
        if spelled(wanted) in map(spelled, grants):
            return True
        return wanted.digest is not None and wanted.digest in map(self._digest, grants)

    def _digest(self, reference: Reference) -> str | None:
        try:
            return self.registry.find(str(reference)).digest
        except NotFound:
            return None

    def _owns(self, caller: Caller, name: AdapterName) -> bool:
        return name.tenant == caller.tenant or caller.operator

    def _noted(self, tenant: str, name: AdapterName) -> bool:
        """Whether a name may be shared with a tenant: one look-up, and the same for a private name and for none."""
        query = select(ReaderRow.name).where(ReaderRow.name == str(name), ReaderRow.reader.in_((EVERYBODY, tenant)))
        return self.database.read(lambda session: session.scalar(query.limit(1))) is not None

    def _opened(self, tenant: str, name: AdapterName) -> Listing | None:
        """A name that its head shares with a tenant."""
        try:
            found = self.registry.show(str(name))
        except NotFound:
            return None
        return found if found.visible_to(tenant) else None

    def _usable_of(self, names: list[str]) -> set[str]:
        """Which of some adapters that the index finds no version of have one: they may be new."""
        moment, known = monotonic(), list(self._unusable.items())
        for name in (name for name, until in known if until <= moment):
            self._unusable.pop(name, None)
        asked = [name for name in names if name not in self._unusable]
        with ThreadPoolExecutor(AT_ONCE, "usable") as pool:
            usable = {name for name, has in zip(asked, pool.map(self._has_version, asked), strict=True) if has}
        self._unusable.update(dict.fromkeys(set(asked) - usable, monotonic() + REMEMBERED))
        return usable

    def _has_version(self, name: str) -> bool:
        try:
            return self.registry.head(name).latest is not None
        except NotFound:
            return False

    def _readable(self, caller: Caller, owner: str | None = None) -> Iterator[AdapterName]:
        """Names, the caller's own first; of others' those that may be shared with it."""
        if owner in (None, caller.tenant):
            yield from map(AdapterName.parse, self.registry.names(caller.tenant))
        if owner == caller.tenant:
            return
        if caller.operator:
            others = self.registry.names(owner)
        else:
            query = select(ReaderRow.name).where(ReaderRow.reader.in_((EVERYBODY, caller.tenant))).distinct()
            if owner is not None:
                query = query.where(ReaderRow.name.startswith(f"{owner}/", autoescape=True))
            others = self.database.read(lambda session: sorted(session.scalars(query)))
        yield from (name for name in map(AdapterName.parse, others) if name.tenant != caller.tenant)


def readers_of(listing: Listing) -> frozenset[str]:
    """Who else may read an adapter, as the table of what is shared has it."""
    return frozenset([EVERYBODY]) if listing.visibility == "public" else frozenset(listing.shared_with)


def note_all(session: Session, pairs: Iterable[tuple[str, str]], since: datetime) -> None:
    """Make the table anew from all names and their readers, but for what was noted `since` they began to be read."""
    wanted = set(pairs)
    rows = session.execute(select(ReaderRow.name, ReaderRow.reader, ReaderRow.at)).all()
    known = {(name, reader): at for name, reader, at in rows}
    fresh = {name for (name, _), at in known.items() if at >= since}
    for name, reader in sorted(known.keys() - wanted):
        if name not in fresh:
            session.execute(delete(ReaderRow).where(ReaderRow.name == name, ReaderRow.reader == reader))
    _insert(session, sorted(pair for pair in wanted - known.keys() if pair[0] not in fresh))


def _usable(reader: str | None, session: Session) -> set[str]:
    """The names that the index finds a usable version of, for a reader; None may know of all."""
    return set(session.scalars(select(VERSIONS.c.name).where(VERSIONS.c.newest == 1, readable(reader))))


def _note(session: Session, listing: Listing) -> None:
    session.execute(delete(ReaderRow).where(ReaderRow.name == listing.name))
    _insert(session, [(listing.name, reader) for reader in sorted(readers_of(listing))])


def _insert(session: Session, pairs: Iterable[tuple[str, str]]) -> None:
    for name, reader in pairs:
        row = insert_on(session, ReaderRow).values(name=name, reader=reader, at=now())
        session.execute(row.on_conflict_do_nothing())


def spelled(reference: Reference) -> str:
    """A reference as permissions mean it: `latest` is what the bare name is."""
    return str(reference.name) if reference.alias == LATEST else str(reference)
