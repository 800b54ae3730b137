"""What a job's adapter answered at the end of its training: for its owner, where it is no part of the adapter."""

from pydantic import ValidationError
from sqlalchemy import select

from swapmeet.database import Database
from swapmeet.database.tables import JobRow
from swapmeet_registry import AdapterName
from swapmeet_registry.origin.provenance import Examples
from swapmeet_registry.stores import Store
from swapmeet_training.progress import EXAMPLES


def remove_examples(database: Database, store: Store, file: str) -> None:
    """Remove what adapters answered to the prompts of a file that is deleted; what was published stays in manifests."""
    query = select(JobRow.id).where(JobRow.validation_file == file)
    for job in database.read(lambda session: list(session.scalars(query))):
        for key in [key for key in store.list(f"runs/{job}/") if key.endswith(f"/{EXAMPLES}")]:
            store.delete(key)


def examples_of(database: Database, store: Store, owner: AdapterName, run: str | None) -> Examples | None:
    """The examples of the run that made an adapter; None where it left none.

    Args:
        database: has the jobs.
        store: has what they left.
        owner: the adapter. A manifest can name any run: only one of the adapter's own tenant is looked at.
        run: what the adapter's manifest says made it.
    """
    query = select(JobRow.id).where(JobRow.id == run, JobRow.tenant == owner.tenant)
    if run is None or database.read(lambda session: session.scalar(query)) is None:
        return None
    kept = {key.split("/")[2]: key for key in store.list(f"runs/{run}/") if key.endswith(f"/{EXAMPLES}")}
    found = store.get(kept[max(kept, key=int)]) if kept else None
    try:
        return Examples.model_validate_json(found.data) if found else None
    except ValidationError:  # another version of Swapmeet wrote it
        return None
