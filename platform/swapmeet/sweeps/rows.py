"""From a sweep that is asked for to its rows: the sweep's, and those of its jobs."""

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from swapmeet.database.tables import JobRow, SweepRow
from swapmeet.errors import RequestRefused
from swapmeet.fine_tuning.mistakes import Mistake
from swapmeet.fine_tuning.models import Origin, adapter_name
from swapmeet.fine_tuning.request import JobRequest
from swapmeet.fine_tuning.rows import JobRequests
from swapmeet.ids import made_at, new_id
from swapmeet.sweeps.mistakes import of_configurations
from swapmeet.sweeps.request import Configuration, Sweep, SweepRequest
from swapmeet_registry import canonical


@dataclass(frozen=True, slots=True)
class NewSweep:
    """The rows of a sweep and of its jobs, with each job's configuration; not yet in the database."""

    row: SweepRow
    jobs: tuple[JobRow, ...]
    configurations: tuple[Configuration, ...]


def rows_of(
    jobs: JobRequests,
    sweep: Sweep,
    tenant: str,
    key: str,
    visible: Callable[[str], bool],
    idempotency_key: str | None = None,
) -> NewSweep:
    """A new sweep; see `JobRequests.row` for the arguments.

    All its jobs go on from the same version, with the same seed unless seeds are tried, and publish as one name.

    Raises:
        RequestRefused: a file, an option or the name can not be used; every mistake is told, with its configurations.
        NotFound: there is no such model.
    """
    first = sweep.requests[0]
    origin = jobs.models.find(first.model, visible)
    sweep_id = new_id("ftsweep-", jobs.clock())
    seed = secrets.randbelow(1 << 31)
    made: list[JobRow] = []
    mistakes: list[list[Mistake]] = []
    for number, request in enumerate(sweep.requests, 1):
        seeded = request if request.seed is not None else request.model_copy(update={"seed": seed})
        try:
            made.append(jobs.row(seeded, tenant, key, visible, f"{sweep_id}/{number}", origin))
            mistakes.append([])
        except RequestRefused as error:
            mistakes.append([Mistake(error.param or "", str(error))])
    if any(mistakes):
        raise of_configurations(mistakes, sweep.configurations)
    adapter = adapter_name(tenant, origin.base, sweep_id, first.suffix, first.lora.name)
    for row, job in zip(made, sorted(row.id for row in made), strict=True):  # so that they run in their order
        row.id, row.created_at = job, made_at(job) or row.created_at
        row.sweep, row.adapter = sweep_id, adapter
    digest = _digest(sweep, tenant, idempotency_key)
    return NewSweep(_row(sweep_id, sweep, first, made[0], origin, digest), tuple(made), sweep.configurations)


def _row(sweep_id: str, sweep: Sweep, request: SweepRequest, job: JobRow, origin: Origin, digest: str) -> SweepRow:
    return SweepRow(
        id=sweep_id,
        tenant=job.tenant,
        created_by=job.created_by,
        created_at=made_at(sweep_id) or job.created_at,
        request_digest=digest,
        model=request.model,
        base=origin.base,
        adapter=job.adapter,
        training_file=request.training_file,
        validation_file=request.validation_file,
        method=request.kind,
        metric=sweep.options.metric,
        options=sweep.options.model_dump(mode="json", exclude_none=True),
        combinations=sweep.options.combinations,
        sweep_metadata=dict(request.metadata),
        state="running",
    )


def _digest(sweep: Sweep, tenant: str, idempotency_key: str | None) -> str:
    """SHA-256 in hex, the same for requests that mean the same; unlike that of any job."""
    plain = [request.model_dump(mode="json", include=set(JobRequest.model_fields)) for request in sweep.requests]
    meant = {
        "tenant": tenant,
        "sweep": sweep.options.model_dump(mode="json"),
        "requests": plain,
        "method": sweep.requests[0].kind,
        "idempotency_key": idempotency_key,
    }
    return hashlib.sha256(canonical.encode(meant)).hexdigest()
