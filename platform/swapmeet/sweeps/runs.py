"""How the configurations of a sweep stand, and which is the best; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from swapmeet.database.tables import SweepRow
from swapmeet.jobs.states import State
from swapmeet.sweeps.request import HIGHER_IS_BETTER


@dataclass(frozen=True, slots=True)
class Run:
    """A configuration and its job; see `SweepRunRow` and `JobRow` for what each means."""

    number: int
    configuration: Mapping[str, Any]
    metrics: Mapping[str, float]
    adapter: str | None
    job: str
    state: str
    step: int
    total_steps: int | None
    trained_tokens: int
    estimated_finish: datetime | None
    waits_for: str | None
    result_file: str | None
    error: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Tried:
    """A sweep, with its configurations in order."""

    row: SweepRow
    runs: tuple[Run, ...]


def best_of(metric: str, runs: Sequence[Run]) -> Run | None:
    """The one that measured best and can be published; of equals the first."""
    sign = -1 if metric in HIGHER_IS_BETTER else 1
    measured = [run for run in runs if run.state == State.SUCCEEDED and run.adapter and metric in run.metrics]
    return min(measured, key=lambda run: (sign * run.metrics[metric], run.number), default=None)


def why_none(metric: str, runs: Sequence[Run]) -> str:
    """Why none of them is the best."""
    done = [run for run in runs if run.state == State.SUCCEEDED]
    if any(metric in run.metrics for run in done):
        return "No adapter of this sweep could be published. The events of its jobs say why."
    if done:
        return f"{len(done)} of {len(runs)} configurations were trained, and none measured a {metric} that is a number."
    failed = next((run for run in runs if run.state == State.FAILED), None)
    if failed is None:
        return "All of the sweep's jobs were cancelled."
    reason = (failed.error or {}).get("message", "")
    return f"None of {len(runs)} configurations succeeded. Configuration {failed.number}: {reason}"
