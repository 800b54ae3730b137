"""What tenants may use and have used, for the policy."""

from collections import defaultdict
from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from swapmeet.database.tables import JobRow, TenantRow
from swapmeet.queue.records import Share
from swapmeet.queue.spending import Spent, spending

NOTHING = Spent(0.0)


def shares(session: Session, running: Iterable[JobRow], now: float, *, gpus: bool) -> dict[str, Share]:
    """Every tenant's share; what is counted is GPU-seconds, or CPU-seconds where the cluster has no GPUs.

    `gpu_seconds_a_day` is of the last 24 hours at any moment: what runs that ended in them used, each hour until its
    end is a day ago, and what running ones have used so far. A day of the calendar would let all who have waited for
    it start at once, give twice the quota around midnight, and be another one for each time zone.
    """
    kind, resource = ("gpu_seconds", "gpus") if gpus else ("cpu_seconds", "cpus")
    held: dict[str, float] = defaultdict(float)
    held_gpus: dict[str, float] = defaultdict(float)
    for row in running:
        seconds = max(now - row.attempt_at.timestamp(), 0.0) if row.attempt_at else 0.0
        held[row.tenant] += seconds * float(row.resources.get(resource, 0))
        held_gpus[row.tenant] += seconds * float(row.resources.get("gpus", 0))
    spent = spending(session, {kind, "gpu_seconds"})

    def share(tenant: TenantRow) -> Share:
        used = spent.get((tenant.name, kind), NOTHING).used(now) + held[tenant.name]
        most, left = tenant.gpu_seconds_a_day, None
        if most is not None:
            today = spent.get((tenant.name, "gpu_seconds"), NOTHING).of_the_day(now) + held_gpus[tenant.name]
            left = max(most - today, 0.0)
        kept_out = tenant.suspended_at is not None or tenant.weight <= 0
        runs = 0 if kept_out else tenant.concurrent_runs
        return Share(1.0 if kept_out else tenant.weight, used, runs, left)

    return {row.name: share(row) for row in session.scalars(select(TenantRow))}
