"""What tenants, keys, usage and the audit log look like over HTTP."""

import csv
import io
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from swapmeet.database.tables import AuditRow, KeyRow, TenantRow
from swapmeet.fine_tuning.wire import seconds
from swapmeet.tenancy.keys import Issued, ended
from swapmeet.tenancy.scopes import expand
from swapmeet.tenancy.tenants import limits_of
from swapmeet.tenancy.usage import KINDS
from swapmeet_registry import InvalidName
from swapmeet_registry.names import require_tenant

DAY = 24 * 3600
LARGEST = 2**63 - 1


def _tenant(text: str) -> str:
    try:
        return require_tenant(text)
    except InvalidName as error:
        raise PydanticCustomError("name", "{reason}", {"reason": str(error)}) from error


def _scopes(names: list[str]) -> list[str]:
    try:
        return sorted(expand(names))
    except ValueError as error:
        raise PydanticCustomError("scopes", "{reason}", {"reason": str(error)}) from error


def _printable(text: str) -> str:
    if not text.isprintable():
        raise PydanticCustomError("printable", "this has characters that can not be printed; leave them out")
    return text


TenantName = Annotated[str, AfterValidator(_tenant)]
Amount = Annotated[int, Field(ge=0, le=LARGEST, strict=True)]
Weight = Annotated[float, Field(ge=0.001, le=1000, allow_inf_nan=False, strict=True)]


class QuotaSettings(BaseModel):
    """Limits; null is none."""

    model_config = ConfigDict(extra="forbid")

    concurrent_runs: Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)] | None = None
    gpu_seconds_a_day: Amount | None = None
    stored_bytes: Amount | None = None
    tokens_a_minute: Amount | None = None
    requests_a_minute: Amount | None = None
    stored_versions: Amount | None = None


class NewTenant(BaseModel):
    """A tenant to make; it has no limits but those that are given."""

    model_config = ConfigDict(extra="forbid")

    name: TenantName
    weight: Weight = 1.0
    quotas: QuotaSettings = QuotaSettings()

    def settings(self) -> dict[str, Any]:
        """By column."""
        return {"weight": self.weight, **self.quotas.model_dump()}


class TenantChange(BaseModel):
    """What to change of a tenant; what is not given stays."""

    model_config = ConfigDict(extra="forbid")

    weight: Weight | None = None
    quotas: QuotaSettings = QuotaSettings()
    suspended: bool | None = None

    def settings(self) -> dict[str, Any]:
        """By column."""
        weight = {} if self.weight is None else {"weight": self.weight}
        return weight | self.quotas.model_dump(exclude_unset=True)


class NewKey(BaseModel):
    """A key to make: whose, what it may do, and for how many seconds."""

    model_config = ConfigDict(extra="forbid")

    tenant: TenantName | None = None
    scopes: Annotated[list[str], Field(max_length=20), AfterValidator(_scopes)]
    name: Annotated[str, Field(max_length=200), AfterValidator(_printable)] = ""
    expires_in: Annotated[int, Field(ge=1, le=3660 * DAY)] | None = None


class Rotation(BaseModel):
    """For how many seconds the old key stays good."""

    model_config = ConfigDict(extra="forbid")

    grace: Annotated[int, Field(ge=0, le=90 * DAY)] = DAY


def tenant_object(row: TenantRow) -> dict[str, Any]:
    """A tenant."""
    limits = limits_of(row)
    return {
        "id": row.name,
        "object": "tenant",
        "name": row.name,
        "created_at": seconds(row.created_at),
        "weight": row.weight,
        "suspended_at": seconds(row.suspended_at),
        "quotas": {name: getattr(limits, name) for name in QuotaSettings.model_fields},
    }


def key_object(row: KeyRow) -> dict[str, Any]:
    """A key, without what it is kept as."""
    status = "revoked" if row.revoked_at else "expired" if ended(row) else "active"
    return {
        "id": row.id,
        "object": "key",
        "tenant": row.tenant,
        "name": row.name,
        "scopes": row.scopes,
        "hint": row.hint,
        "status": status,
        "created_at": seconds(row.created_at),
        "created_by": row.created_by,
        "expires_at": seconds(row.expires_at),
        "revoked_at": seconds(row.revoked_at),
        "last_used_at": seconds(row.last_used_at),
        "replaced_by": row.replaced_by,
    }


def issued_object(issued: Issued) -> dict[str, Any]:
    """A key that was just made, in the only answer that ever has it."""
    return key_object(issued.row) | {"value": issued.key}


def audit_object(row: AuditRow) -> dict[str, Any]:
    """An entry of the audit log."""
    return {
        "id": f"audit-{row.id}",
        "object": "audit.entry",
        "at": seconds(row.at),
        "tenant": row.tenant,
        "actor": {"tenant": row.actor, "key": row.key},
        "action": row.action,
        "subject": row.subject,
        "outcome": row.outcome,
        "request": row.request,
        "detail": row.detail,
        "operation": row.operation,
        "sequence": row.sequence,
        "hash": row.hash,
    }


def usage_csv(rows: Sequence[dict[str, Any]], by: Sequence[str]) -> str:
    """Usage as a table."""
    text = io.StringIO()
    table = csv.DictWriter(text, [*by, *KINDS], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()
