"""What becomes certain once a job's files have been checked."""

from swapmeet.database.tables import FileRow, JobRow
from swapmeet.errors import RequestRefused
from swapmeet.files.rules import FINE_TUNE
from swapmeet.fine_tuning.hyperparameters import resolve, run_settings

FEWEST_EXAMPLES = 10
"""Of a training file, as OpenAI has it."""
FORMS = {"supervised": ("chat", "completion"), "dpo": ("preference",)}


def settle(job: JobRow, training: FileRow, validation: FileRow | None) -> None:
    """Replace each `auto` of a job and make the settings of its run; both files have been checked.

    Done again, it changes nothing.

    Raises:
        RequestRefused: a file can not be used; its code, message and `param` are those of the job's error.
    """
    for field, file in (("training_file", training), ("validation_file", validation)):
        if file is not None:
            require_usable(field, file, job.method)
    examples = _examples(training)
    if examples < FEWEST_EXAMPLES:
        raise RequestRefused(
            f"Training file has {examples} example(s), but must have at least {FEWEST_EXAMPLES} examples. Add some.",
            "training_file",
            "invalid_n_examples",
        )
    job.hyperparameters = resolve(job.hyperparameters, examples, job.lora["gradient_accumulation"])
    job.settings = run_settings(job.hyperparameters, job.lora, job.method, job.seed)


def require_usable(field: str, file: FileRow, method: str) -> None:
    """Nothing, if a file can be given to a job, as far as is known by now.

    Raises:
        RequestRefused: it can not.
    """
    if file.purpose != FINE_TUNE:
        raise RequestRefused(
            f"{field} {file.id} was uploaded for {file.purpose!r}. Upload it with the purpose {FINE_TUNE!r}.", field
        )
    if file.status == "error":
        raise RequestRefused(f"{field} {file.id}: {file.status_details}", field, "invalid_training_file")
    form = (file.report or {}).get("form")
    if form is not None and form not in FORMS[method]:
        wanted = " or ".join(FORMS[method])
        raise RequestRefused(
            f"{field} {file.id} has lines of the form {form}, and {method} learns from {wanted}. Choose the other "
            "method, or another file.",
            field,
            "invalid_training_file",
        )


def _examples(file: FileRow) -> int:
    return int((file.report or {}).get("examples", 0))
