"""Which other tenants may use a model: its owner grants that, model by model."""

import hashlib
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.tables import PermissionRow, TenantRow
from swapmeet.database.tables.base import now
from swapmeet.errors import NotFound
from swapmeet.tenancy.audit import note
from swapmeet.tenancy.caller import Caller


class Permissions:
    """The permissions of one database. Whether a model is the caller's own, the caller has looked at."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def grant(self, model: str, projects: Sequence[str], by: Caller | None = None) -> list[PermissionRow]:
        """Let tenants use a model; one that may already, keeps its permission.

        Args:
            model: as those tenants will name it.
            projects: the tenants, which is what OpenAI's client calls projects.
            by: who does it; None for the server itself.

        Raises:
            NotFound: some are no tenants; the message names all of them.
        """
        wanted = sorted(set(projects))

        def insert(session: Session) -> list[PermissionRow]:
            locked = select(TenantRow.name).where(TenantRow.name.in_(wanted)).order_by(TenantRow.name)
            known = set(session.scalars(locked.with_for_update()))
            if unknown := [name for name in wanted if name not in known]:
                raise NotFound(f"There are no tenants {', '.join(map(repr, unknown))}. Check project_ids.")
            rows = [session.get(PermissionRow, _id(model, each)) for each in wanted]
            made = [
                row or PermissionRow(id=_id(model, each), model=model, project=each, created_at=now())
                for row, each in zip(rows, wanted, strict=True)
            ]
            session.add_all(made)
            if new := [each for row, each in zip(rows, wanted, strict=True) if row is None]:
                note(session, by, "permission.grant", model, tenant=_owner(model), detail=f"to {', '.join(new)}")
            return made

        return self._database.write(insert)

    def page(
        self,
        model: str,
        after: str | None = None,
        limit: int = 10,
        project: str | None = None,
        newest_first: bool = True,
    ) -> tuple[list[PermissionRow], bool]:
        """A model's permissions, from behind the one of the id `after`, and whether there are more.

        Raises:
            NotFound: the model has no permission `after`.
        """

        def find(session: Session) -> list[PermissionRow]:
            query = select(PermissionRow).where(PermissionRow.model == model)
            if project is not None:
                query = query.where(PermissionRow.project == project)
            rows = list(session.scalars(query.order_by(PermissionRow.created_at, PermissionRow.id)))
            return rows[::-1] if newest_first else rows

        rows = self._database.read(find)  # at most one a tenant
        ids = [row.id for row in rows]
        if after is not None and after not in ids:
            raise _missing(model, after)
        start = ids.index(after) + 1 if after is not None else 0
        return rows[start : start + limit], len(rows) > start + limit

    def revoke(self, model: str, permission: str, by: Caller | None = None) -> None:
        """Take a permission back.

        Raises:
            NotFound: the model has no such permission.
        """

        def delete(session: Session) -> None:
            row = session.get(PermissionRow, permission) if permission.isprintable() else None
            if row is None or row.model != model:
                raise _missing(model, permission)
            session.delete(row)
            note(session, by, "permission.revoke", model, tenant=_owner(model), detail=f"from {row.project}")

        self._database.write(delete)


def _owner(model: str) -> str:
    return model.partition("/")[0]


def _id(model: str, project: str) -> str:
    """The same for the same, so that a request that is sent twice makes one permission."""
    return "cp_" + hashlib.sha256(f"{model}\0{project}".encode()).hexdigest()[:32]


def _missing(model: str, permission: str) -> NotFound:
    return NotFound(f"The model {model!r} has no permission {permission[:80]!r}. List its permissions.")
