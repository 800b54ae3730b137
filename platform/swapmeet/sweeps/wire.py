"""Sweeps as the API has them, in the manner of OpenAI's jobs."""

from collections import Counter
from typing import Any

from swapmeet.database.tables import EventRow
from swapmeet.fine_tuning.wire import event_object, seconds
from swapmeet.jobs.states import State
from swapmeet.sweeps.runs import Run, Tried
from swapmeet.sweeps.sweeps import SweepState


def sweep_object(sweep: Tried) -> dict[str, Any]:
    """A sweep, with all its configurations in `runs`."""
    row, runs = sweep.row, sweep.runs
    under_way = [run for run in runs if not State(run.state).ended]
    finishes = [run.estimated_finish for run in under_way if run.estimated_finish]
    known = row.state == SweepState.RUNNING and under_way and len(finishes) == len(under_way)
    return {
        "id": row.id,
        "object": "fine_tuning.sweep",
        "created_at": seconds(row.created_at),
        "model": row.model,
        "organization_id": row.tenant,
        "training_file": row.training_file,
        "validation_file": row.validation_file,
        "method": {"type": row.method},
        "status": row.state,
        "finished_at": seconds(row.finished_at),
        "estimated_finish": seconds(max(finishes)) if known else None,
        "fine_tuned_model": row.fine_tuned_model,
        "best": row.best,
        "error": row.error,
        "metadata": row.sweep_metadata,
        "adapter": row.adapter,
        "base": row.base,
        "metric": row.metric,
        "sweep": row.options,
        "combinations": row.combinations,
        "trained_tokens": sum(run.trained_tokens for run in runs),
        "counts": dict(Counter(run.state for run in runs)),
        "runs": [_run_object(run, row.best) for run in runs],
    }


def sweep_event_object(event: EventRow, run: int) -> dict[str, Any]:
    """An event of one of a sweep's jobs, with the number of its configuration."""
    return {**event_object(event), "fine_tuning_job_id": event.job, "run": run}


def _run_object(run: Run, best: str | None) -> dict[str, Any]:
    return {
        "number": run.number,
        "job": run.job,
        "configuration": run.configuration,
        "status": run.state,
        "step": run.step,
        "total_steps": run.total_steps,
        "trained_tokens": run.trained_tokens,
        "metrics": run.metrics,
        "result_file": run.result_file,
        "error": run.error,
        "waits_for": run.waits_for,
        "best": run.job == best,
    }
