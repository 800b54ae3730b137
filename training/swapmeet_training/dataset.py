"""A run's data as token sequences, checked whole before anything is trained."""

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swapmeet_registry.errors import BaseInvalid
from swapmeet_training.data import read_examples
from swapmeet_training.masking import Masker, Sequence
from swapmeet_training.spec import FineTune


@dataclass(frozen=True, slots=True)
class Dataset:
    """Training and held-out sequences, and the token id that pads them."""

    training: list[Sequence]
    held_out: list[Sequence]
    pad: int

    @property
    def tokens(self) -> int:
        """Tokens of one pass over the training sequences."""
        return sum(len(sequence.tokens) for sequence in self.training)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(len(sequence.tokens) for sequence in (*self.training, *self.held_out))


def check_files(spec: FineTune) -> None:
    """Check the base's folder and the form of every example: fast, without a tokenizer.

    Raises:
        BaseInvalid: there is no base in that folder.
        DataError: a file is wrong; the message names lines and fields.
    """
    if not (spec.base / "config.json").is_file():
        raise BaseInvalid(f"{spec.base} holds no base model (no config.json). Name a transformers model folder.")
    for path in data_files(spec):
        deque(read_examples(path), maxlen=0)


def load_dataset(spec: FineTune) -> Dataset:
    """All of a run's data as tokens.

    Raises:
        BaseInvalid: the base has no tokenizer that loads.
        DataError: a file is wrong, or an example does not fit; the message names lines and fields.
        TemplateError: the base's chat template can not mark the assistant's turns.
    """
    check_files(spec)
    tokenizer = _tokenizer(spec.base)
    masker = Masker.of(spec.base, tokenizer, spec.max_length)
    parts = [masker.sequences(read_examples(path), path) for path in data_files(spec)]
    pad = next(token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if token is not None)
    return Dataset(parts[0], parts[1] if spec.validation else [], pad)


def data_files(spec: FineTune) -> list[Path]:
    """The training file, and the validation file where there is one."""
    return [spec.data, spec.validation] if spec.validation else [spec.data]


def _tokenizer(base: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(base, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise BaseInvalid(f"transformers can not load the tokenizer in {base}: {error}") from error
