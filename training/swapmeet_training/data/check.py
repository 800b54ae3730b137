"""Check a training file, whatever its size: every mistake and warning with line, field, kind and remedy.

Rows are read, checked and tokenised one by one. What is kept of an example are 12 bytes that find it again, and 4 for
its length if there is a base, so a million lines take some 20 MB.
"""

import re
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np

from swapmeet_training.data.dataset import load_tokenizer
from swapmeet_training.data.examples import FORMS, Example, Form, texts_of
from swapmeet_training.data.findings import Finding, Listing, Notes, Unit
from swapmeet_training.data.masking import Masked, Masker, check_length, sequences_of
from swapmeet_training.data.reading import EMPTY, examine
from swapmeet_training.data.repeats import Contents, Pairs
from swapmeet_training.data.report import Report, TokenStatistics
from swapmeet_training.data.rows import files_of, unit_of

PERCENTILES = (50, 90, 95, 99)
SPECIAL = re.compile(r"<\|[A-Za-z0-9_]{1,40}\|>")
"""What special tokens of many bases look like."""
TOLD_EVERY = 1000
"""Rows between two calls of `progress`."""


def check_file(
    path: Path,
    *,
    base: Path | None = None,
    max_length: int | None = None,
    against: Path | None = None,
    template: str | None = None,
    least: int = 1,
    progress: Callable[[int], object] = lambda _: None,
) -> Report:
    """Find all that is wrong with a file.

    Args:
        path: a JSONL or Parquet file, or a folder of HF `datasets`.
        base: a base's folder; its tokenizer and its chat template are tried on every example.
        max_length: the longest sequence that a run would take, in tokens; needs a base.
        against: another file, which must have no example of this one: the validation file, or the training file.
        template: a chat template instead of the base's.
        least: so many examples there must be.
        progress: called with the number of rows read, now and then.

    Raises:
        DataError: there is no such file.
        BaseInvalid: the base has no tokenizer that loads.
        ValueError: `max_length` or `template` without a base.
    """
    if base is None and (max_length is not None or template is not None):
        raise ValueError("max_length and template need a base, whose tokenizer counts and renders.")
    size = sum(file.stat().st_size if file.is_file() else 0 for file in files_of(path))
    survey = Survey(_masker(base, template) if base else None, max_length)
    rows, whole = 0, True
    for rows, row in enumerate(examine(path), 1):
        survey.mistakes.add(*row.mistakes)
        survey.warnings.add(*row.warnings)
        whole = all(finding.line for finding in row.mistakes)
        if row.example:
            survey.add(row.example)
        if rows % TOLD_EVERY == 0:
            progress(rows)
    if not rows:
        survey.mistakes.add(EMPTY)
    elif whole and rows < least:
        message = f"Training file has {rows} example(s), but must have at least {least} examples"
        survey.mistakes.add(Finding(None, "", "invalid_n_examples", message, "Add some."))
    survey.tell_repeated(unit_of(path))
    if against is not None:
        survey.compare(against)
    return survey.report(path, rows, size)


class Survey:
    """What is known of a file's examples so far."""

    def __init__(self, masker: Masker | None, max_length: int | None) -> None:
        self.mistakes = Listing()
        self.warnings = Listing()
        self._form: Form | None = None
        self._contents = Contents()
        self._masker = masker
        self._max_length = max_length
        self._lengths = array("I")
        self._trained = 0

    def add(self, example: Example) -> None:
        """Take in an example without mistakes, which has more if the masker finds them."""
        self._form = FORMS[type(example)]
        self._contents.add(example)
        notes = Notes(example.line)
        if self._masker is None:
            _note_special(example, notes)
        else:
            for masked in self._masker.examine(example, notes):
                self._count(masked, notes)
        self.mistakes.add(*notes.mistakes)
        self.warnings.add(*notes.warnings)

    def tell_repeated(self, unit: Unit) -> None:
        """Warn of examples that stand there twice."""
        pairs = self._contents.repeated()

        def make(number: int) -> Finding:
            message = f"is the same as {unit} {pairs.first[number]}"
            return Finding(int(pairs.lines[number]), "", "duplicate", message, "Leave one out, unless it should count.")

        self.warnings.add_all(len(pairs), "duplicate", make)

    def compare(self, against: Path) -> None:
        """Find this file's examples in another."""
        other, form, unread = Contents(), None, 0
        for row in examine(against):
            if row.example:
                form = FORMS[type(row.example)]
                other.add(row.example)
            unread += row.example is None
        if unread:
            message = f"has {unread} example(s) with mistakes, which could not be compared"
            self.warnings.add(Finding(None, against.name, "not_compared", message, "Check that file, too."))
        if form and self._form and form != self._form:
            message = f"holds examples of the form {form}, and this file of the form {self._form}"
            self.mistakes.add(Finding(None, against.name, "mixed_forms", message, "Give both files one form."))
        self._tell_shared(self._contents.shared(other), against)

    def report(self, path: Path, rows: int, size: int) -> Report:
        """All of it."""
        return Report(
            name=path.name,
            form=self._form,
            unit=unit_of(path),
            examples=rows,
            bytes=size,
            tokens=self._statistics() if self._masker else None,
            mistakes=self.mistakes.listed(),
            warnings=self.warnings.listed(),
            mistake_counts=self.mistakes.counts,
            warning_counts=self.warnings.counts,
        )

    def _tell_shared(self, pairs: Pairs, against: Path) -> None:
        unit = unit_of(against)

        def make(number: int) -> Finding:
            message = f"stands in {against.name}, too, on {unit} {pairs.first[number]}"
            fix = "Leave it out of one of them: what was trained on tells nothing of what was learnt."
            return Finding(int(pairs.lines[number]), "", "leakage", message, fix)

        self.mistakes.add_all(len(pairs), "leakage", make)

    def _count(self, masked: Masked, notes: Notes) -> None:
        for sequence in sequences_of(masked):
            if self._max_length is not None:
                check_length(sequence, self._max_length, notes)
            self._lengths.append(len(sequence.tokens))
            self._trained += sequence.trained

    def _statistics(self) -> TokenStatistics:
        if not self._lengths:
            return TokenStatistics(0, 0, 0, dict.fromkeys(PERCENTILES, 0))
        lengths = np.frombuffer(self._lengths, np.uint32)
        values = np.percentile(lengths, PERCENTILES, method="inverted_cdf")
        percentiles = {share: int(value) for share, value in zip(PERCENTILES, values, strict=True)}
        return TokenStatistics(int(lengths.sum(dtype=np.int64)), self._trained, int(lengths.max()), percentiles)


def _masker(base: Path, template: str | None) -> Masker:
    return Masker.of(base, load_tokenizer(base), None, template)


def _note_special(example: Example, notes: Notes) -> None:
    for field, text in texts_of(example):
        found = SPECIAL.search(text)
        if found:
            message = f"holds {found[0]}, which is a special token of some bases"
            notes.warn(field, "special_token", message, "Leave it out, or check with the base.")
