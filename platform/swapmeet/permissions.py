"""Which other tenants may use a model: its owner grants that, model by model."""

import hashlib
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.tables import PermissionRow
from swapmeet.database.tables.base import now
from swapmeet.errors import NotFound
from swapmeet.tenancy.audit import note
from swapmeet.tenancy.caller import Caller
from swapmeet.tenancy.inserting import insert_on
from swapmeet.tenancy.tenants import require_tenants


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
            NotFound: some are no tenants (`require_tenants`); the message names all of them.
        """
        wanted = {each: _id(model, each) for each in sorted(set(projects))}

        def insert(session: Session) -> list[PermissionRow]:
            require_tenants(session, wanted, by)
            rows = [{"id": id_, "model": model, "project": each, "created_at": now()} for each, id_ in wanted.items()]
            statement = insert_on(session, PermissionRow).values(rows).on_conflict_do_nothing()
            if new := sorted(session.scalars(statement.returning(PermissionRow.project))):
                note(session, by, "permission.grant", model, tenant=_owner(model), detail=f"to {', '.join(new)}")
            return [session.get_one(PermissionRow, identity) for identity in wanted.values()]

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
