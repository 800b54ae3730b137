"""A run's data as token sequences, checked whole before anything is trained."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swapmeet_registry.errors import BaseInvalid
from swapmeet_training.data import Example, read_examples
from swapmeet_training.data.examples import FORMS, Form
from swapmeet_training.data.masking import Masked, Masker, Pair, Sequence, sequences_of
from swapmeet_training.errors import DataError
from swapmeet_training.spec import FineTune


@dataclass(frozen=True, slots=True)
class Dataset:
    """Training and held-out sequences, or pairs of them, and the token id that pads them."""

    training: list[Sequence] | list[Pair]
    held_out: list[Sequence] | list[Pair]
    pad: int

    @property
    def tokens(self) -> int:
        """Tokens of one pass over the training sequences, of pairs both."""
        return sum(_lengths(self.training))

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max((*_lengths(self.training), *_lengths(self.held_out)))


def check_files(spec: FineTune) -> None:
    """Check the base's folder and the form of every example: fast, without a tokenizer.

    Raises:
        BaseInvalid: there is no base in that folder.
        DataError: a file is wrong; the message names lines and fields.
    """
    if not (spec.base / "config.json").is_file():
        raise BaseInvalid(f"{spec.base} holds no base model (no config.json). Name a transformers model folder.")
    forms = {path.name: _form(read_examples(path)) for path in data_files(spec)}
    if len(set(forms.values())) > 1:
        told = " and ".join(f"{name} of the form {form}" for name, form in forms.items())
        raise DataError(f"Training and validation must be of one form, but there is {told}. Change one of them.")


def load_dataset(spec: FineTune) -> Dataset:
    """All of a run's data as tokens.

    Raises:
        BaseInvalid: the base has no tokenizer that loads.
        DataError: a file is wrong, or an example does not fit; the message names lines and fields.
        TemplateError: the base's chat template can not mark the assistant's turns.
    """
    check_files(spec)
    tokenizer = load_tokenizer(spec.base)
    masker = Masker.of(spec.base, tokenizer, spec.max_length, spec.chat_template)
    parts = [masker.sequences(read_examples(path), path) for path in data_files(spec)]
    pad = next(token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if token is not None)
    return Dataset(parts[0], parts[1] if spec.validation else [], pad)


def data_files(spec: FineTune) -> list[Path]:
    """The training file, and the validation file where there is one."""
    return [spec.data, spec.validation] if spec.validation else [spec.data]


def _form(examples: Iterator[Example]) -> Form:
    """The form of a file's examples, all of which are read."""
    return {FORMS[type(example)] for example in examples}.pop()


def load_tokenizer(base: Path) -> Any:
    """A base's transformers tokenizer.

    Raises:
        BaseInvalid: it has none that loads.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(base, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise BaseInvalid(f"transformers can not load the tokenizer in {base}: {error}") from error


def _lengths(examples: Iterable[Masked]) -> Iterator[int]:
    return (len(sequence.tokens) for masked in examples for sequence in sequences_of(masked))
