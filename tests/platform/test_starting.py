"""How long a job's start took, part by part."""

from datetime import UTC, datetime, timedelta

from swapmeet.database.tables import JobRow
from swapmeet.queue.starting import started

BEGAN = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def row(attempt: int) -> JobRow:
    queued, placed = BEGAN + timedelta(seconds=1.5), BEGAN + timedelta(seconds=2)
    return JobRow(attempt=attempt, created_at=BEGAN, queued_at=queued, attempt_at=placed)


def moments(**seconds: float) -> dict[str, float]:
    return {part: BEGAN.timestamp() + moment for part, moment in seconds.items()}


def test_parts_add_up_to_the_time_since_submission() -> None:
    told, data = started(row(1), moments(process=3, files=3, data=3.25, base=5.25, adapter=5.5, step=8))
    assert data["total"] == 8.0
    assert data["seconds"] == {
        "planned": 1.5,
        "placed": 0.5,
        "process": 1.0,
        "files": 0.0,
        "data": 0.25,
        "base": 2.0,
        "adapter": 0.25,
        "step": 2.5,
    }
    assert told.startswith("First step done 8.0 s after submission: 1.5 s checking and planning, 0.5 s waiting for its")
    assert told.endswith("0.2 s adding the adapter, 2.5 s the first step")


def test_a_later_attempt_counts_from_its_own_start() -> None:
    told, data = started(row(2), moments(process=3, step=8))
    assert data == {"seconds": {"process": 1.0, "step": 5.0}, "total": 6.0}
    assert told == "First step done 6.0 s after the start of attempt 2: 1.0 s starting a process, 5.0 s the first step"


def test_a_workers_clock_that_is_behind_makes_no_part_negative() -> None:
    _, data = started(row(1), moments(process=1, files=2.5, step=4))
    assert data["seconds"] == {"planned": 1.5, "placed": 0.5, "process": 0.0, "files": 0.5, "step": 1.5}
    assert data["total"] == 4.0
