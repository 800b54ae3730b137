"""Read the examples of training files, and find all that is wrong with them."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from swapmeet_training.data.examples import FORMS, Example, Form
from swapmeet_training.data.findings import Finding, Mistakes, Notes
from swapmeet_training.data.parsing import parse_example
from swapmeet_training.data.rows import files_of, open_file, read_rows, unit_of

EMPTY = Finding(None, "", "empty_file", "is empty", "Write one example per line.")
KEYS = {
    "chat": "'messages'",
    "completion": "'prompt' and 'completion'",
    "preference": "'input' with two outputs",
}


@dataclass(frozen=True, slots=True)
class Examined:
    """A row with what is found in it; `example` is there if there are no mistakes."""

    line: int
    example: Example | None = None
    mistakes: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)


def examine(path: Path) -> Iterator[Examined]:
    """Every row of a file, in order. The first example's form is that of all.

    Raises:
        DataError: there is no such file.
    """
    form: tuple[int, Form] | None = None
    for row in read_rows(path):
        if row.flaw:
            yield Examined(row.line, mistakes=[row.flaw])
            continue
        notes = Notes(row.line)
        example = parse_example(row.value, notes)
        if example:
            form = form or (row.line, FORMS[type(example)])
            example = _of_form(example, *form, notes)
        yield Examined(row.line, example, notes.mistakes, notes.warnings)


def read_examples(path: Path) -> Iterator[Example]:
    """The examples of a JSONL or Parquet file, or of a folder of HF `datasets`, in order.

    Raises:
        DataError: there is no such file; or, after the last line (or the twentieth mistake), any line is wrong.
    """
    mistakes, examples = Mistakes(path, unit_of(path)), 0
    for row in examine(path):
        examples += 1
        mistakes.add(*row.mistakes)
        if row.example:
            yield row.example
    if not examples:
        mistakes.add(EMPTY)
    mistakes.check()


def dataset_digest(*paths: Path) -> str:
    """`sha256:HEX` of the files' bytes: of one file its own digest, of several that of their digests in order.

    A folder stands for the files that hold its rows.

    Raises:
        DataError: a file can not be read.
    """
    digests = []
    for file in (file for path in paths for file in files_of(path)):
        with open_file(file) as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    whole = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return f"sha256:{whole}"


def _of_form(example: Example, line: int, form: Form, notes: Notes) -> Example | None:
    own = FORMS[type(example)]
    if own == form:
        return example
    message = f"has {KEYS[own]} where line {line} has {KEYS[form]}"
    notes.mistake("", "mixed_forms", message, "Keep one form per file.")
    return None
