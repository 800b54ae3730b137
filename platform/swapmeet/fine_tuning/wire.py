"""Jobs, events and checkpoints as OpenAI's client reads them. What is ours comes beside, as further attributes."""

from datetime import datetime
from typing import Any

from swapmeet.database.tables import CheckpointRow, EventRow, JobRow
from swapmeet.files.files import FINISHED

METRICS = (
    "step",
    "train_loss",
    "train_mean_token_accuracy",
    "valid_loss",
    "valid_mean_token_accuracy",
    "full_valid_loss",
    "full_valid_mean_token_accuracy",
)


def job_object(job: JobRow) -> dict[str, Any]:
    """A job. Besides OpenAI's: `status` may be `paused`; `waits_for` says why it waits, and about how long.

    One of a `sweep` has a `fine_tuned_model` only once the sweep has ended, and if it is the best.
    """
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": seconds(job.created_at),
        "model": job.model,
        "organization_id": job.tenant,
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "result_files": [job.result_file] if job.result_file else [],
        "hyperparameters": job.hyperparameters,
        "method": {"type": job.method, job.method: {"hyperparameters": job.hyperparameters}},
        "seed": job.seed,
        "status": job.state,
        "fine_tuned_model": job.fine_tuned_model,
        "finished_at": seconds(job.finished_at),
        "trained_tokens": job.trained_tokens if job.state in FINISHED else None,
        "error": _error(job.error),
        "integrations": job.integrations,
        "estimated_finish": None if job.state in FINISHED else seconds(job.estimated_finish),
        "metadata": job.job_metadata,
        "suffix": job.suffix,
        "sweep": job.sweep,
        "adapter": job.adapter,
        "base": job.base,
        "parent": job.parent,
        "lora": job.lora,
        "plan": job.plan,
        "step": job.step,
        "total_steps": job.total_steps,
        "waits_for": job.waits_for,
        "attempts": job.attempt,
    }


def event_object(event: EventRow) -> dict[str, Any]:
    """An event: a message, or metrics of a step."""
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": seconds(event.created_at),
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": event.data or {},
    }


def checkpoint_object(checkpoint: CheckpointRow) -> dict[str, Any]:
    """A checkpoint, which is a model by the name that it gives."""
    measured = {**checkpoint.metrics, "step": checkpoint.step}
    return {
        "id": checkpoint.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": seconds(checkpoint.created_at),
        "fine_tuned_model_checkpoint": checkpoint.model,
        "fine_tuning_job_id": checkpoint.job,
        "step_number": checkpoint.step,
        "metrics": {name: measured[name] for name in METRICS if name in measured},
    }


def seconds(moment: datetime | None) -> int | None:
    """Whole seconds since the epoch."""
    return None if moment is None else int(moment.timestamp())


def _error(error: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if error is None else {"code": None, "message": "", "param": None, **error}
