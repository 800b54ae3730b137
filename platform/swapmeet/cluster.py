"""The Ray that everything runs on: one of our own on this machine, or the cluster that the settings name."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from swapmeet.errors import ServerFailed
from swapmeet.settings import Settings


@contextmanager
def ray_running(settings: Settings) -> Iterator[None]:
    """Have Ray within the block; what was started here ends with it, what ran before stays."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
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
        raise ServerFailed(f"Ray did not start: {error}. Check SWAPMEET_RAY_ADDRESS, memory and /tmp.") from error
    try:
        yield
    finally:
        ray.shutdown()
