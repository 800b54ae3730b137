"""The logs that a job's attempts leave in the storage, also while they run."""

from collections.abc import Iterator
from dataclasses import dataclass

from swapmeet.database.tables import JobRow
from swapmeet.errors import RequestRefused
from swapmeet_registry.stores import Store
from swapmeet_training.attempts.log import log_length, log_lines


@dataclass(frozen=True, slots=True)
class Part:
    """Of one attempt's log what was asked for: its lines from number `first` on, counted from 0."""

    attempt: int
    first: int


def parts_of(
    store: Store, job: JobRow, attempt: int | None = None, skip: int = 0, tail: int | None = None
) -> list[Part]:
    """What there is to read, of one attempt or of all, oldest first.

    Args:
        store: the storage.
        job: whose.
        attempt: which of its attempts; None for all.
        skip: how many lines of each to leave out.
        tail: how many lines of each to give at most, its last ones.

    Raises:
        RequestRefused: there was no such attempt.
        StoreError: the storage can not be read.
    """
    if attempt is not None and attempt > job.attempt:
        had = f"has had {job.attempt}" if job.attempt else "has had none yet"
        raise RequestRefused(
            f"attempt is {attempt}, and the job {had}. Ask for one of those, or leave it out.", "attempt"
        )
    attempts = range(1, job.attempt + 1) if attempt is None else [attempt]
    return [Part(each, _first(store, job.id, each, skip, tail)) for each in attempts]


def lines_of(store: Store, job: str, part: Part) -> Iterator[str]:
    """The lines of a part.

    Raises:
        StoreError: the storage can not be read.
    """
    return log_lines(store, job, part.attempt, part.first)


def log_of(store: Store, job: JobRow) -> Iterator[str]:
    """All lines, each attempt's below a line of its own.

    Raises:
        StoreError: the storage can not be read.
    """
    for part in parts_of(store, job):
        yield heading(part)
        yield from lines_of(store, job.id, part)


def heading(part: Part) -> str:
    """What stands above an attempt's lines."""
    return f"--- attempt {part.attempt} ---"


def _first(store: Store, job: str, attempt: int, skip: int, tail: int | None) -> int:
    return skip if tail is None else max(skip, log_length(store, job, attempt) - tail)
