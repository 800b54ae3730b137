"""What attempts tell, written into their jobs: each telling once, and only of the attempt that counts."""

import hashlib
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from swapmeet.database.tables import CheckpointRow, JobRow
from swapmeet.database.tables.base import now
from swapmeet.jobs.ending import Announce, fail, move
from swapmeet.jobs.events import tell
from swapmeet.jobs.publishing import Model, Outcome, insert_once
from swapmeet.jobs.states import Move, State
from swapmeet.queue.comparing import compared
from swapmeet.queue.starting import started
from swapmeet.sweeps.measuring import note_measured
from swapmeet.tenancy.stocktaking import note_published
from swapmeet_registry import RegistryError
from swapmeet_training.attempts.run_storage import step_of
from swapmeet_training.attempts.telling import Began, Failed, Finished, Noted, Ready, Saved, Stepped, Stopped, Telling
from swapmeet_training.errors import StorageFull
from swapmeet_training.progress import Progress

MOST_FAILURES = 5
"""So many attempts without a new checkpoint may be lost; then the job fails."""
MOST_FULL = 50
"""So many, where the disk of its machine was full: that is no fault of the job's, and may last for hours."""
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 300.0
"""Seconds until a lost attempt's job is tried again; twice as many after each further one."""
EVENT_NAMES = {
    "eval_loss": "full_valid_loss",
    "eval_token_accuracy": "full_valid_mean_token_accuracy",
    "loss": "train_loss",
    "token_accuracy": "train_mean_token_accuracy",
}
"""OpenAI's names of what is measured; others keep theirs."""

Made = Model | Outcome | RegistryError | None
"""What publishing made of a telling that is to be published, or why it can not be."""


def counts(row: JobRow, attempt: int) -> bool:
    """Whether what this attempt tells is still wanted."""
    return row.state == State.RUNNING and row.attempt == attempt


def record(session: Session, row: JobRow, telling: Telling, made: Made, announce: Announce) -> None:
    """Write down one thing that a job's present attempt told, in a transaction that has locked the job."""
    match telling:
        case Began():
            _began(session, row, telling)
        case Ready(moments):
            told, data = started(row, moments)
            tell(session, row.id, f"ready-{row.attempt}", told, data=data)
        case Stepped(progress):
            _stepped(session, row, progress)
        case Noted(name, message, level):
            tell(session, row.id, name, message, level=level)
        case Saved():
            _saved(session, row, telling, made)
        case Stopped(checkpoint):
            move(session, row, Move.PARK)
            said = "paused" if row.state == State.PAUSED else "waiting for its turn again"
            step = step_of(checkpoint)
            tell(session, row.id, f"parked-{row.attempt}", f"The run stopped after step {step} and is {said}")
        case Finished():
            _finished(session, row, telling, made, announce)
        case Failed(code, message, own):
            if own:
                fail(session, row, code, message, announce, _param(code))
            else:
                lose(session, row, code, message, announce)


def lose(session: Session, row: JobRow, code: str, reason: str, announce: Announce, *, blamed: bool = True) -> None:
    """An attempt ended through no fault of its job, which is tried again; unless that happened too often.

    Args:
        session: of the transaction.
        row: the job, locked.
        code: what the job fails with if this was once too often.
        reason: what happened, in a sentence.
        announce: told if the job fails.
        blamed: whether the job may have caused it; the end of a whole cluster is never held against it.
    """
    row.failures += int(blamed)
    if row.failures >= (MOST_FULL if code == StorageFull.code else MOST_FAILURES):
        kept = f"Its last checkpoint, after step {step_of(row.checkpoint)}, is kept." if row.checkpoint else ""
        told = f"{row.failures} attempts ended without a new checkpoint, the last so: {reason} {kept}".strip()
        fail(session, row, code, told, announce)
        return
    pause = min(FIRST_PAUSE * 2 ** max(row.failures - 1, 0), LONGEST_PAUSE) if blamed else 0.0
    attempt = row.attempt
    move(session, row, Move.LOSE)
    row.not_before = now() + timedelta(seconds=pause)
    row.waits_for = f"Its run was interrupted, and is tried again after {pause:.0f} s" if pause else None
    go_on = f"goes on from step {step_of(row.checkpoint)}" if row.checkpoint else "begins again"
    tell(session, row.id, f"lost-{attempt}", f"The run was interrupted and {go_on}: {reason}", level="warn")


def _began(session: Session, row: JobRow, began: Began) -> None:
    if row.attempt > 1:
        where = f"goes on from step {step_of(began.checkpoint)}" if began.checkpoint else "begins at step 0"
        tell(session, row.id, f"began-{row.attempt}", f"The run {where} (attempt {row.attempt})")


def _stepped(session: Session, row: JobRow, progress: Progress) -> None:
    row.step, row.total_steps = max(row.step, progress.step), progress.total_steps
    row.trained_tokens = max(row.trained_tokens, progress.trained_tokens)
    row.estimated_finish = now() + timedelta(seconds=min(max(progress.seconds_left, 0.0), 1e8))
    measured = {"loss": progress.loss, **progress.metrics, **progress.evaluation}
    data = {"step": progress.step, "total_steps": progress.total_steps, **_renamed(measured)}
    told = f"Step {progress.step}/{progress.total_steps}: training loss={progress.loss:.4f}"
    if progress.evaluation:
        kind = "evaluation"
        told += "".join(f", {_word(name)}={value:.4f}" for name, value in progress.evaluation.items())
    else:
        kind = "step"
    tell(session, row.id, f"{kind}-{progress.step}", told, type="metrics", data=data)


def _saved(session: Session, row: JobRow, saved: Saved, made: Made) -> None:
    step = step_of(saved.checkpoint)
    row.checkpoint, row.failures = saved.checkpoint, 0
    if isinstance(made, RegistryError):
        told = f"The checkpoint after step {step} is kept to go on from, but is no model: {made}"
        tell(session, row.id, f"checkpoint-{step}", told, level="warn")
        return
    assert isinstance(made, Model)
    session.execute(delete(CheckpointRow).where(CheckpointRow.job == row.id, CheckpointRow.id.in_(made.dropped)))
    if session.scalars(select(CheckpointRow).where(CheckpointRow.job == row.id, CheckpointRow.step == step)).first():
        return
    identity = f"ftckpt_{hashlib.sha256(f'{row.id}/{step}'.encode()).hexdigest()[:24]}"
    metrics = {"step": step, **_renamed(saved.metrics)}
    row.kept_bytes = made.kept
    note_published(session, made.version, made.bytes)
    model, digest = made.version.name, made.version.digest
    session.add(CheckpointRow(id=identity, job=row.id, step=step, model=model, digest=digest, metrics=metrics))
    tell(
        session,
        row.id,
        f"checkpoint-{step}",
        f"Checkpoint created at step {step}",
        data={"step": step, "model": model, "id": identity},
    )


def _finished(session: Session, row: JobRow, finished: Finished, made: Made, announce: Announce) -> None:
    if isinstance(made, RegistryError):
        fail(session, row, made.code, f"The run is done, but its adapter can not be published: {made}", announce)
        return
    assert isinstance(made, Outcome)
    row.step, row.trained_tokens = finished.steps, max(row.trained_tokens, finished.trained_tokens)
    row.result_file = made.file.id
    insert_once(session, made.file)
    if made.version is None:
        note_measured(session, row, finished)
    else:
        note_published(session, made.version, made.bytes)
        model = row.fine_tuned_model = str(made.version)
        tell(session, row.id, "model", f"New fine-tuned model created: {model}", data={"model": model})
    told, figures = compared(row.plan, finished)
    tell(session, row.id, "succeeded", f"The job has successfully completed{told}", data=figures)
    move(session, row, Move.SUCCEED, announce)


def _renamed(measured: Any) -> dict[str, Any]:
    return {EVENT_NAMES.get(name, name): value for name, value in measured.items()}


def _word(name: str) -> str:
    return name.replace("eval_", "validation ").replace("_", " ")


def _param(code: str) -> str | None:
    return {"invalid_training_file": "training_file", "invalid_hyperparameters": "hyperparameters"}.get(code)
