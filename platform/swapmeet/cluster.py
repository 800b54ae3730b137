"""The Ray that everything runs on: one of our own on this machine, or the cluster that the settings name."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from swapmeet.errors import ServerFailed
from swapmeet.settings import Settings

SERVE = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
}
"""Switches of Ray Serve that it reads from the environment alone: calls go by gRPC, not through the object store, and
change no thread, so that handles belong to an event loop; an engine that is dead or stuck ends at once, because there
is nothing that it could finish."""

LOOK = "Check SWAPMEET_RAY_ADDRESS, memory and /tmp."
AUTHENTICATE = "The cluster wants its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH."
CLAIMS = "swapmeet-claims"


@contextmanager
def ray_running(settings: Settings) -> Iterator[None]:
    """Have Ray within the block; what was started here ends with it, what ran before stays."""
    for name, value in ({"RAY_USAGE_STATS_ENABLED": "0"} | SERVE).items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        ray.init(
            address=settings.ray_address or "local",
            include_dashboard=None if settings.ray_address else False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        hint = AUTHENTICATE if "AuthenticationError" in str(error.__cause__) else LOOK
        raise ServerFailed(f"Ray did not start: {error}. {hint}") from error
    try:
        yield
    finally:
        ray.shutdown()


def claim(name: str) -> None:
    """Note in the cluster that this process stands before an application of this name."""
    import ray
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(name, ray.get_runtime_context().get_job_id(), namespace=CLAIMS)


def abandoned(name: str) -> bool:
    """Whether the process that claimed the name is gone; False where none did."""
    from ray._private.state import state
    from ray.experimental.internal_kv import _internal_kv_get

    claimed = _internal_kv_get(name, namespace=CLAIMS)
    living = {job["JobID"] for job in state.job_table() if not job["IsDead"]}  # type: ignore[no-untyped-call]
    return claimed is not None and claimed.decode() not in living
