"""Replicas as a Ray Serve deployment.

Ray wraps what a replica raises in a `RayTaskError` whose `cause` is the error itself.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from swapmeet_serving.board import Board, Poster, poster_to, process_id
from swapmeet_serving.calls import Call
from swapmeet_serving.inbox import Address
from swapmeet_serving.outbox import Outbox
from swapmeet_serving.replica import Replica
from swapmeet_serving.replica_settings import ReplicaSettings

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

DEPLOYMENT = "Replica"
REPORT_SECONDS = 1.0
HEALTH_SECONDS = 3.0
DRAIN_POLL_SECONDS = 0.5
LOOK_BACK_SECONDS = 15.0


class ServedReplica(Replica):
    """A replica that sends answers to gateways' inboxes, and posts its measurements to the board if there is one."""

    def __init__(self, settings: ReplicaSettings, board: "DeploymentHandle[Board] | None" = None) -> None:
        super().__init__(settings, process_id() if board else "alone")
        self._outbox = Outbox()
        if board:
            self._poster = Poster("replica", self._id, self.families, poster_to(board))

    async def send(self, call: Call, to: Address) -> AsyncIterator[None]:
        """`generate`, where the chunks go to an inbox; gives nothing, and ends when all have left.

        Raises:
            ConnectionError: the inbox is gone.
            EngineDead: it can not be reached.
            ServingError, RegistryError: as from `generate`.
        """
        line = await self._outbox.line(to)
        async with aclosing(self.generate(call)) as chunks:
            async for chunk in chunks:
                line.send(to.stream, chunk)
                await line.room()
        await line.sent()
        yield


def build_replicas(
    settings: ReplicaSettings, board: "Application | None" = None, replica: type[ServedReplica] = ServedReplica
) -> "Application":
    """The replica as a Ray Serve application, to bind into a gateway or to run by itself."""
    from ray import serve
    from ray.serve.config import AutoscalingConfig, RequestRouterConfig

    from swapmeet_serving.request_router import AdapterRouter

    scaling = settings.scaling
    router: Any = {"request_router_class": AdapterRouter, "request_routing_stats_period_s": REPORT_SECONDS}
    replicas = serve.deployment(
        name=DEPLOYMENT,
        # More calls than the engine takes, so that it answers `Overloaded` instead of calls piling up unseen.
        max_ongoing_requests=settings.max_batch + 2 * settings.max_queue,
        max_queued_requests=scaling.max_queued,
        autoscaling_config=AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            target_ongoing_requests=scaling.target_requests,
            upscale_delay_s=scaling.upscale_delay,
            downscale_delay_s=scaling.downscale_delay,
            look_back_period_s=max(LOOK_BACK_SECONDS, scaling.upscale_delay),
        ),
        request_router_config=RequestRouterConfig(**router),
        graceful_shutdown_timeout_s=scaling.drain,
        graceful_shutdown_wait_loop_s=DRAIN_POLL_SECONDS,
        health_check_period_s=HEALTH_SECONDS,
        ray_actor_options={
            "num_cpus": settings.cpus,
            "num_gpus": 1 if settings.device.startswith("cuda") else 0,
        },
    )(replica)
    application: Application = replicas.bind(settings, board)
    return application
