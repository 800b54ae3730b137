"""Replicas as a Ray Serve deployment.

Ray wraps what a replica raises in a `RayTaskError` whose `cause` is the error itself.
"""

from typing import TYPE_CHECKING

from swapmeet_serving.board import Board, Poster, poster_to, process_id
from swapmeet_serving.replica import Replica, ReplicaSettings

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle


class ServedReplica(Replica):
    """A replica that posts its measurements to the board if there is one."""

    def __init__(self, settings: ReplicaSettings, board: "DeploymentHandle[Board] | None" = None) -> None:
        super().__init__(settings, process_id() if board else "alone")
        if board:
            self._poster = Poster("replica", self._id, self.families, poster_to(board))


def build_replicas(settings: ReplicaSettings, board: "Application | None" = None) -> "Application":
    """The replica as a Ray Serve application, to bind into a gateway or to run by itself."""
    from ray import serve

    # More calls than the engine takes, so that it answers `Overloaded` instead of calls piling up unseen.
    replicas = serve.deployment(
        name="Replica",
        max_ongoing_requests=settings.max_batch + 2 * settings.max_queue,
        ray_actor_options={
            "num_cpus": settings.cpus,
            "num_gpus": 1 if settings.device.startswith("cuda") else 0,
        },
    )(ServedReplica)
    application: Application = replicas.bind(settings, board)
    return application
