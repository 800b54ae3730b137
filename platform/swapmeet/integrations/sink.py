"""What a system that takes metrics must do, and which one an integration means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from swapmeet.integrations.request import INTEGRATIONS, MlflowRun, TensorboardRun
from swapmeet.settings import Settings


@dataclass(frozen=True, slots=True)
class Run:
    """The job whose metrics are sent, as other systems may know it."""

    job: str
    tenant: str
    model: str
    adapter: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured at an optimizer step, finite values only, and when."""

    step: int
    at: datetime
    values: Mapping[str, float]


class Sink(Protocol):
    """One run in another system. Opening it again, in any process, goes on with the same run."""

    def log(self, points: Sequence[Point]) -> None:
        """Send points; some may have been sent before."""

    def end(self, state: str, at: datetime) -> None:
        """The job has ended: `succeeded`, `failed` or `cancelled`."""

    def close(self) -> None:
        """Let go of it; the run may be gone on with later."""


def open_sink(integration: Any, run: Run, settings: Settings) -> Sink:
    """The sink of one integration, as a job's row holds it.

    Raises:
        SinkFailed: the other system does not answer, or refuses.
    """
    (checked,) = INTEGRATIONS.validate_python([integration])
    if isinstance(checked, MlflowRun):
        from swapmeet.integrations.mlflow_server import MlflowSink

        return MlflowSink(settings.mlflow, checked.mlflow, run)
    if isinstance(checked, TensorboardRun):
        from swapmeet.integrations.event_files import EventFileSink

        return EventFileSink(settings.tensorboard_folder / run.tenant / run.job)
    from swapmeet.integrations.weights_and_biases import WandbSink

    return WandbSink(checked.wandb, run, settings.folder / "wandb")
