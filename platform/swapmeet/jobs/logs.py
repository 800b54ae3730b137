"""The logs that a job's attempts left in the storage."""

from collections.abc import Iterator

from swapmeet.database.tables import JobRow
from swapmeet_registry.stores import Store
from swapmeet_training.attempts.run_storage import RunStorage

LOG = "log.txt"


def log_of(store: Store, job: JobRow) -> Iterator[str]:
    """The lines of all attempts that ended, oldest first, each attempt's below a line of its own.

    Raises:
        StoreError: the storage can not be read.
    """
    runs = RunStorage(store, job.id)
    for attempt in range(1, job.attempt + 1):
        stored = store.get(runs.key(attempt, LOG))
        if stored is not None:
            yield f"--- attempt {attempt} ---"
            yield from stored.data.decode(errors="replace").splitlines()
