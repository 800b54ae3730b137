"""When jobs that run will be gone, as far as anybody can tell."""

from swapmeet.queue.records import Active

PARKING = 30.0
"""Seconds until a job that was told to park has written its checkpoint and is gone, about."""
GUESS = 600.0
"""Seconds that a job of unknown length is taken to last still, at least."""
OVERRUN = 0.1
"""A job that outlasts its estimate is taken to last this part of its length longer."""


def ends_at(job: Active, now: float) -> float:
    """When it is expected to end: later than now."""
    if job.parking:
        return now + PARKING
    ran = max(now - job.started_at, 0.0)
    if job.seconds <= 0:
        return now + max(ran, GUESS)
    planned = job.started_at + job.seconds
    return planned if planned > now else now + max(OVERRUN * ran, 1.0)
