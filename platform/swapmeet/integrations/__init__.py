"""Other systems that a run's metrics are sent to: Weights & Biases, MLflow and TensorBoard, all optional.

A job names them when it is made (check_integrations() says what is wrong with that); a Relay sends, in the background
of a server, what the job's events hold. Nothing that goes wrong there reaches the job. Only it needs a database, and
is imported when it is asked for.
"""

from typing import TYPE_CHECKING, Any

from swapmeet.integrations.request import Integration, MlflowRun, TensorboardRun, WandbRun, check_integrations
from swapmeet.integrations.sink import Point, Run, Sink

if TYPE_CHECKING:
    from swapmeet.integrations.relay import Relay

__all__ = [
    "Integration",
    "MlflowRun",
    "Point",
    "Relay",
    "Run",
    "Sink",
    "TensorboardRun",
    "WandbRun",
    "check_integrations",
]


def __getattr__(name: str) -> Any:
    if name == "Relay":
        from swapmeet.integrations.relay import Relay

        return Relay
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
