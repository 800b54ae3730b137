"""The usage ledger: who used how much of what, by minute; amounts are whole numbers of their unit.

What training uses is written by its job's own transactions. What inference uses is counted in a gateway's memory and
written every few seconds and when it stops: a gateway that is killed loses its last seconds.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, get_args

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from swapmeet.database import Database
from swapmeet.database.tables import FileRow, JobRow, TenantRow, UsageRow
from swapmeet.database.tables.base import now
from swapmeet.tenancy.inserting import insert_on

Kind = Literal[
    "inference_requests",
    "inference_prompt_tokens",
    "inference_output_tokens",
    "training_tokens",
    "gpu_seconds",
    "cpu_seconds",
    "stored_byte_hours",
]
KINDS: tuple[str, ...] = get_args(Kind)
By = Literal["tenant", "adapter", "key", "day"]
MOST_ROWS = 500
"""Rows of one statement, well under what databases take."""


class Cell(NamedTuple):
    """What an amount is counted by; `at` begins a minute."""

    at: datetime
    tenant: str
    key: str
    kind: str
    subject: str
    owner: str


class Usage:
    """The ledger of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @staticmethod
    def add(
        session: Session,
        *,
        source: str,
        tenant: str,
        kind: Kind,
        amount: float,
        subject: str = "",
        key: str = "",
        owner: str = "",
        at: datetime | None = None,
    ) -> None:
        """Tell an amount within a transaction.

        A source has one amount of a kind, tenant, subject, key and minute, and telling it again replaces it, so that
        a repeated transaction counts once. Tell the amount since the minute began, or give each part a source of its
        own, such as `JOB/ATTEMPT/STEP`.

        Args:
            session: the transaction.
            source: who tells, at most 120 characters.
            tenant: who pays.
            kind: what was used.
            amount: how much, in the kind's unit; rounded.
            subject: the adapter, base or job that it was used on.
            key: the id of the key that asked.
            owner: whose adapter it is.
            at: when; now where nothing is given.
        """
        cell = Cell(minute(at or now()), tenant, key, kind, subject[:200], owner)
        put(session, source, {cell: round(amount)})

    def report(
        self,
        start: datetime,
        end: datetime,
        by: Sequence[By] = (),
        *,
        tenant: str | None = None,
        owner: str | None = None,
    ) -> list[dict[str, Any]]:
        """What was used from `start` until before `end`: for each group a value of each kind, 0 where there is none.

        Args:
            start: the first moment.
            end: the first moment that does not count.
            by: what to tell apart, in this order.
            tenant: only what this one pays.
            owner: only what was used of this one's adapters, by whomever.
        """
        return self._database.read(lambda session: _report(session, start, end, by, tenant, owner))

    def measure_storage(self) -> None:
        """Count the bytes of each tenant's files, checkpoints and adapters for the present hour.

        Whoever measures last in an hour is right.
        """
        hour = now().replace(minute=0, second=0, microsecond=0)

        def work(session: Session) -> None:
            files = select(FileRow.tenant, func.sum(FileRow.bytes)).where(FileRow.deleted_at.is_(None))
            kept = select(JobRow.tenant, func.sum(JobRow.kept_bytes)).where(JobRow.kept_bytes > 0)
            adapters = select(TenantRow.name, TenantRow.adapter_bytes).where(TenantRow.adapter_bytes > 0)
            stored: Counter[str] = Counter()
            for query in (files.group_by(FileRow.tenant), kept.group_by(JobRow.tenant), adapters):
                stored.update({tenant: int(amount) for tenant, amount in session.execute(query)})
            cells = {Cell(hour, name, "", "stored_byte_hours", "", ""): amount for name, amount in stored.items()}
            put(session, "storage", cells)

        self._database.write(work)


def minute(at: datetime) -> datetime:
    """The beginning of a moment's minute, in UTC."""
    return at.astimezone(UTC).replace(second=0, microsecond=0)


def put(session: Session, source: str, amounts: Mapping[Cell, int]) -> None:
    """Set amounts of a source, whatever they were."""
    # In one order everywhere, so that transactions that set the same amounts do not wait for each other in a ring.
    rows = [cell._asdict() | {"source": source, "amount": amount} for cell, amount in sorted(amounts.items())]
    for first in range(0, len(rows), MOST_ROWS):
        statement = insert_on(session, UsageRow).values(rows[first : first + MOST_ROWS])
        unique = [UsageRow.source, UsageRow.at, UsageRow.tenant, UsageRow.kind, UsageRow.subject, UsageRow.key]
        set_ = {"amount": statement.excluded.amount, "owner": statement.excluded.owner}
        session.execute(statement.on_conflict_do_update(index_elements=unique, set_=set_))


def _report(
    session: Session, start: datetime, end: datetime, by: Sequence[By], tenant: str | None, owner: str | None
) -> list[dict[str, Any]]:
    columns = [_column(session, each).label(f"by_{each}") for each in by]
    query = select(UsageRow.kind, func.sum(UsageRow.amount), *columns).group_by(UsageRow.kind, *columns)
    query = query.where(UsageRow.at >= start, UsageRow.at < end)
    if tenant is not None:
        query = query.where(UsageRow.tenant == tenant)
    if owner is not None:
        query = query.where(UsageRow.owner == owner)
    groups: dict[tuple[str, ...], dict[str, int]] = {}
    for kind, amount, *group in session.execute(query):
        groups.setdefault(tuple(map(str, group)), dict.fromkeys(KINDS, 0))[kind] = int(amount)
    if not by:
        return [groups.get((), dict.fromkeys(KINDS, 0))]
    return [dict(zip(by, group, strict=True)) | amounts for group, amounts in sorted(groups.items())]


def _column(session: Session, by: By) -> ColumnElement[Any]:
    if by == "day":
        utc = UsageRow.at if session.get_bind().dialect.name == "sqlite" else func.timezone("UTC", UsageRow.at)
        return func.date(utc)
    columns: dict[str, Any] = {"tenant": UsageRow.tenant, "key": UsageRow.key, "adapter": UsageRow.subject}
    return columns[by]  # type: ignore[no-any-return]


def shares(amount: int, among: int) -> Iterable[int]:
    """An amount in whole parts that differ by one at most and sum up to it, the larger ones first."""
    part, rest = divmod(amount, among)
    return (part + (place < rest) for place in range(among))
