"""What tenants may use and have used, for the policy."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from swapmeet.database.tables import JobRow, TenantRow, UsageRow
from swapmeet.queue.records import Share
from swapmeet.queue.turns import decayed

LOOK_BACK = timedelta(days=3)
DAY = 24 * 3600.0


def shares(session: Session, running: Iterable[JobRow], now: float, *, gpus: bool) -> dict[str, Share]:
    """Every tenant's share; what is counted is GPU-seconds, or CPU-seconds where the cluster has no GPUs."""
    kind, resource = ("gpu_seconds", "gpus") if gpus else ("cpu_seconds", "cpus")
    used: dict[str, float] = defaultdict(float)
    today: dict[str, float] = defaultdict(float)
    since = datetime.fromtimestamp(now, UTC) - LOOK_BACK
    query = select(UsageRow.tenant, UsageRow.kind, UsageRow.at, func.sum(UsageRow.amount))
    query = query.where(UsageRow.at >= since, UsageRow.kind.in_({kind, "gpu_seconds"}))
    for tenant, what, at, amount in session.execute(query.group_by(UsageRow.tenant, UsageRow.kind, UsageRow.at)):
        if what == kind:
            used[tenant] += decayed([(at.timestamp(), int(amount))], now)
        if what == "gpu_seconds" and now - at.timestamp() < DAY:
            today[tenant] += int(amount)
    for row in running:
        seconds = max(now - row.attempt_at.timestamp(), 0.0) if row.attempt_at else 0.0
        used[row.tenant] += seconds * float(row.resources.get(resource, 0))
        today[row.tenant] += seconds * float(row.resources.get("gpus", 0))
    return {row.name: _share(row, used[row.name], today[row.name]) for row in session.scalars(select(TenantRow))}


def _share(tenant: TenantRow, used: float, today: float) -> Share:
    kept_out = tenant.suspended_at is not None or tenant.weight <= 0
    runs = 0 if kept_out else tenant.concurrent_runs
    most = tenant.gpu_seconds_a_day
    return Share(1.0 if kept_out else tenant.weight, used, runs, None if most is None else max(most - today, 0.0))
