"""Tenants: who they are, their share of the machines, and their limits."""

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.tables import TenantRow
from swapmeet.database.tables.base import now
from swapmeet.errors import Conflict, Forbidden, NotFound
from swapmeet.tenancy.audit import note
from swapmeet.tenancy.caller import OPERATOR, Caller, Limits
from swapmeet.tenancy.inserting import insert_on
from swapmeet_registry.names import is_tenant, require_tenant

SETTINGS = ("weight", *(each.name for each in fields(Limits)))
"""What of a tenant may be set, beside whether it is suspended."""


class Tenants:
    """The tenants of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ensure(self, name: str) -> None:
        """Have a tenant of this name, with a share of one and no limits unless it is there.

        Raises:
            InvalidName: it can not be a tenant's name.
        """
        require_tenant(name)
        self._database.write(lambda session: _add(session, {"name": name}))

    def create(self, name: str, settings: Mapping[str, Any], by: Caller) -> TenantRow:
        """A new tenant; the same again gives the one that is there.

        Args:
            name: as in the names of its adapters.
            settings: any of `SETTINGS`.
            by: who makes it.

        Raises:
            Conflict: there is one of this name with other settings.
            InvalidName: it can not be a tenant's name.
        """
        require_tenant(name)
        wanted = {**dict.fromkeys(SETTINGS), "weight": 1.0, **settings}

        def work(session: Session) -> TenantRow:
            if _add(session, {"name": name, **wanted}):
                note(session, by, "tenant.create", name, tenant=name, detail=_words(settings))
            found = tenant_row(session, name)
            if any(getattr(found, each) != value for each, value in wanted.items()):
                raise Conflict(f"There is a tenant {name!r} with other settings. Change it, or choose another name.")
            return found

        return self._database.write(work)

    def get(self, name: str) -> TenantRow:
        """A tenant.

        Raises:
            NotFound: there is none of this name.
        """
        return self._database.read(lambda session: tenant_row(session, name))

    def page(self, after: str | None = None, limit: int = 100) -> tuple[list[TenantRow], bool]:
        """Tenants by name, from the one after `after` on, and whether there are more."""
        query = select(TenantRow).order_by(TenantRow.name).limit(limit + 1)
        if after is not None:
            query = query.where(TenantRow.name > after)
        rows = self._database.read(lambda session: list(session.scalars(query)))
        return rows[:limit], len(rows) > limit

    def change(self, name: str, settings: Mapping[str, Any], by: Caller, *, suspended: bool | None = None) -> TenantRow:
        """Change some settings of a tenant, suspend it, or let it go on.

        Raises:
            Forbidden: the operator would shut itself out.
            NotFound: there is no such tenant.
        """
        if suspended and name == OPERATOR:
            raise Forbidden(f"The tenant {OPERATOR!r} is the operator's and can not be suspended. Revoke its keys.")

        def work(session: Session) -> TenantRow:
            row = tenant_row(session, name, lock=True)
            for each, value in settings.items():
                setattr(row, each, value)
            if suspended is not None:
                row.suspended_at = (row.suspended_at or now()) if suspended else None
            words = _words({**settings, **({} if suspended is None else {"suspended": suspended})})
            note(session, by, "tenant.change", name, tenant=name, detail=words)
            return row

        return self._database.write(work)


def limits_of(row: TenantRow) -> Limits:
    """A tenant's limits."""
    return Limits(**{each.name: getattr(row, each.name) for each in fields(Limits)})


def tenant_row(session: Session, name: str, *, lock: bool = False) -> TenantRow:
    """A tenant, locked where the transaction is to change it or what is counted for it.

    Raises:
        NotFound: there is none of this name.
    """
    row = session.get(TenantRow, name, with_for_update=lock or None) if is_tenant(name) else None
    if row is None:
        raise no_tenant(name)
    return row


def require_tenants(session: Session, names: Collection[str], by: Caller | None = None) -> None:
    """Nothing, if something may be shared with tenants of these names.

    Which tenants there are is the operator's to know. Another may share with whatever can be a tenant's name, so that
    the answer does not tell: a tenant that is made later finds what was shared with it.

    Raises:
        NotFound: some there are not, or can not be; the message names all of them.
    """
    known = {name for name in names if is_tenant(name)}
    if by is None or by.operator:
        known = set(session.scalars(select(TenantRow.name).where(TenantRow.name.in_(known))))
    if unknown := sorted(set(names) - known):
        raise NotFound(f"There are no tenants {', '.join(repr(name[:64]) for name in unknown)}. Check their names.")


def no_tenant(name: str) -> NotFound:
    """What is said of a tenant that is not there, and of one that the caller may not know of."""
    return NotFound(f"There is no tenant {name[:64]!r}. Check its name.")


def _add(session: Session, values: Mapping[str, Any]) -> bool:
    """Add a tenant unless there is one of its name, whoever else tries at the same moment; says whether it did."""
    statement = insert_on(session, TenantRow).values(**values).on_conflict_do_nothing(index_elements=[TenantRow.name])
    return bool(session.execute(statement.returning(TenantRow.name)).all())


def _words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={'none' if value is None else value}" for name, value in sorted(settings.items()))
