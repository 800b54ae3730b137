"""How long a job took from its submission to its first step, part by part, for its owner and for programs."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from swapmeet.database.tables import JobRow

PARTS = {
    "planned": "checking and planning",
    "placed": "waiting for its turn",
    "process": "starting a process",
    "files": "fetching files",
    "data": "reading them as tokens",
    "base": "loading the base",
    "adapter": "adding the adapter",
    "step": "the first step",
}
"""What ended at each moment, in words."""


def started(row: JobRow, moments: Mapping[str, float]) -> tuple[str, dict[str, Any]]:
    """A sentence and the seconds of each part; of a later attempt, from its own start.

    The parts of the worker are by its machine's clock. Where that is behind the leader's, no part is less than 0.
    """
    assert row.attempt_at is not None
    first = row.attempt == 1 and row.queued_at is not None
    begun = row.created_at if first else row.attempt_at
    all_moments = ({"planned": _at(row.queued_at), "placed": _at(row.attempt_at)} if first else {}) | dict(moments)
    seconds, before = {}, _at(begun)
    for part, moment in all_moments.items():
        seconds[part] = round(max(moment - before, 0.0), 3)
        before = max(moment, before)
    total = round(before - _at(begun), 3)
    words = ", ".join(f"{seconds[part]:.1f} s {PARTS[part]}" for part in PARTS if part in seconds)
    since = "submission" if first else f"the start of attempt {row.attempt}"
    return f"First step done {total:.1f} s after {since}: {words}", {"seconds": seconds, "total": total}


def _at(moment: datetime | None) -> float:
    assert moment is not None
    return moment.timestamp()
