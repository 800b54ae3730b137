"""Whether a new job can be queued: its files were checked, and suit it; its resources can be had."""

from collections.abc import Callable

from sqlalchemy.orm import Session

from swapmeet.database.tables import FileRow, JobRow
from swapmeet.errors import PlatformError
from swapmeet.queue.orders import resources_of

Settle = Callable[[JobRow, FileRow, FileRow | None], None]
"""Called with a job and its checked files; raises a `PlatformError`, with `param` if it has one, where they do not fit.
"""


def settle_nothing(_job: JobRow, _training: FileRow, _validation: FileRow | None) -> None:
    """For jobs whose settings hang on no file."""


class Unfit(Exception):
    """A job can not be run as it is: with the code and the field of its error."""

    def __init__(self, message: str, code: str, param: str | None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


class Validator:
    """Judges jobs; `settle` has the last word."""

    def __init__(self, settle: Settle) -> None:
        self._settle = settle

    def __call__(self, session: Session, row: JobRow) -> str | None:
        """Nothing where the job can be queued, or what it waits for.

        Raises:
            Unfit: it never can be.
        """
        _require_resources(row)
        checked: dict[str, FileRow] = {}
        for param, identity in (("training_file", row.training_file), ("validation_file", row.validation_file)):
            if identity is None:
                continue
            file = session.get(FileRow, identity)
            if file is None or file.status == "error":
                why = (file.status_details if file else None) or f"There is no file {identity} any more."
                raise Unfit(why, f"invalid_{param}", param)
            if file.status != "processed":
                return f"{identity} is being checked"
            checked[param] = file
        try:
            self._settle(row, checked["training_file"], checked.get("validation_file"))
        except PlatformError as error:
            raise Unfit(str(error), error.code, getattr(error, "param", None)) from error
        return None


def _require_resources(row: JobRow) -> None:
    """What is no amount must not come before the policy, which decides for all jobs."""
    try:
        resources_of(row)
        if float(row.resources.get("memory", 0)) >= 0:
            return
    except (TypeError, ValueError):
        pass
    raise Unfit(
        f"The resources {row.resources} can not be had. Give cpus above 0, gpus from 0 to 1, and memory in bytes.",
        "invalid_hyperparameters",
        "resources",
    )
