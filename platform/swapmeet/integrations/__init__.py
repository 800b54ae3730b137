"""Other systems that a run's metrics are sent to: Weights & Biases, MLflow and TensorBoard, all optional.

A job names them when it is made (check_integrations() says what is wrong with that); a Relay sends, in the background
of a server, what the job's events hold. Nothing that goes wrong there reaches the job.
"""

from swapmeet.integrations.relay import Relay
from swapmeet.integrations.request import Integration, MlflowRun, TensorboardRun, WandbRun, check_integrations
from swapmeet.integrations.sink import Point, Run, Sink

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
