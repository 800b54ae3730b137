"""What a run would see of one example: its tokens, and which of them are trained."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from swapmeet_training.data.dataset import load_tokenizer
from swapmeet_training.data.examples import Example, Preference
from swapmeet_training.data.findings import Finding, Mistakes, Unit
from swapmeet_training.data.masking import IGNORED, Masker, Sequence, sequences_of
from swapmeet_training.data.reading import EMPTY, examine
from swapmeet_training.data.rows import unit_of
from swapmeet_training.errors import DataError


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens in a row that are all trained or all not, and their text with special tokens in it."""

    text: str
    trained: bool
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """A sequence to look at: of a chat, mostly the only one; of a preference, one of the two answers by its key."""

    unit: Unit
    line: int
    key: str
    spans: tuple[Span, ...]
    tokens: tuple[Span, ...]

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "unit": self.unit,
            "line": self.line,
            "key": self.key,
            "trained": sum(span.trained for span in self.tokens),
            "spans": [{"text": span.text, "trained": span.trained} for span in self.spans],
            "tokens": [{"id": each.tokens[0], "text": each.text, "trained": each.trained} for each in self.tokens],
        }


def preview(path: Path, base: Path, line: int | None = None, template: str | None = None) -> list[Shown]:
    """The example on a line, or the first one, as a run on a base would see it.

    Args:
        path: a training file.
        base: the base's folder.
        line: where the example stands.
        template: a chat template instead of the base's.

    Raises:
        DataError: there is no example there, or it can not be used.
        TemplateError: the chat template can not mark the assistant's turns.
        BaseInvalid: the base has no tokenizer that loads.
    """
    example = _example(path, line)
    tokenizer = load_tokenizer(base)
    unit = unit_of(path)
    masked = Masker.of(base, tokenizer, None, template).sequences([example], path)
    sequences = [sequence for each in masked for sequence in sequences_of(each)]
    keys = example.keys if isinstance(example, Preference) else ("",) * len(sequences)
    return [_shown(tokenizer, sequence, unit, key) for sequence, key in zip(sequences, keys, strict=True)]


def _example(path: Path, line: int | None) -> Example:
    unit = unit_of(path)
    mistakes, row = Mistakes(path, unit), None
    for row in examine(path):
        if line is None or row.line >= line:
            break
    if row is None:
        mistakes.add(EMPTY)
    elif line is not None and row.line != line:
        mistakes.add(Finding(line, "", "empty_file", "has no example", f"Name another {unit}."))
    else:
        mistakes.add(*row.mistakes)
    mistakes.check()
    assert row is not None
    if row.example is None:
        raise DataError(f"{path.name} has no example to show. Check it first.")
    return row.example


def _shown(tokenizer: Any, sequence: Sequence, unit: Unit, key: str) -> Shown:
    marked = list(zip(sequence.tokens, (label != IGNORED for label in sequence.labels), strict=True))
    groups = [(trained, [token for token, _ in group]) for trained, group in groupby(marked, lambda each: each[1])]
    spans = _spans(tokenizer, groups)
    tokens = _spans(tokenizer, [(trained, [token]) for token, trained in marked])
    return Shown(unit, sequence.line, key, tuple(spans), tuple(tokens))


def _spans(tokenizer: Any, groups: list[tuple[bool, list[int]]]) -> Iterator[Span]:
    before: list[int] = []
    for trained, tokens in groups:
        # a token's text may depend on the one before it: the first of a text loses its space
        text = _decode(tokenizer, before + tokens)[len(_decode(tokenizer, before)) :]
        yield Span(text, trained, tuple(tokens))
        before = tokens[-1:]


def _decode(tokenizer: Any, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))
