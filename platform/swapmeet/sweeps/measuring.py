"""What a configuration measured, noted with the end of its job."""

import math
from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from swapmeet.database.tables import EventRow, JobRow, SweepRunRow
from swapmeet.jobs.events import tell
from swapmeet_training.attempts.telling import Finished

MEASURED = {"valid_loss": ("eval_loss",), "valid_accuracy": ("eval_token_accuracy", "eval_reward_accuracy")}
"""What a run calls what its adapter was evaluated to, whichever it has."""


def note_measured(session: Session, job: JobRow, finished: Finished) -> None:
    """Write down what a sweep's job, which ends in this transaction, measured, and where its adapter lies."""
    run = session.scalars(select(SweepRunRow).where(SweepRunRow.job == job.id)).one()
    run.metrics, run.adapter = _metrics(finished.metrics, _last_epoch(session, job.id)), finished.adapter
    figures = ", ".join(f"{name} {value:.4g}" for name, value in run.metrics.items())
    tell(
        session,
        job.id,
        "measured",
        f"Configuration {run.number} of {job.sweep} is trained ({figures}). When all are, the best is published",
        data={"sweep": job.sweep, "configuration": run.configuration, **run.metrics},
    )


def _metrics(found: Mapping[str, float], train_loss: float | None) -> dict[str, float]:
    named = {name: next((found[each] for each in other if each in found), None) for name, other in MEASURED.items()}
    named["train_loss"] = found.get("loss") if train_loss is None else train_loss
    return {name: value for name, value in named.items() if value is not None and math.isfinite(value)}


def _last_epoch(session: Session, job: str) -> float | None:
    """The mean training loss of the last epoch's steps: that of the last step alone says little."""
    query = select(EventRow.data).where(EventRow.job == job, EventRow.type == "metrics", EventRow.name.like("step-%"))
    steps = [data for data in session.scalars(query) if data and "epoch" in data]
    end = max((data["epoch"] for data in steps), default=0.0)
    losses = [data["train_loss"] for data in steps if data["epoch"] > end - 1]
    return sum(losses) / len(losses) if losses else None
