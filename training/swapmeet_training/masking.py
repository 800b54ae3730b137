"""Turn examples into tokens, and mark which of them are trained: the assistant's, and the end of its turn.

The tokens are those that serving will see. A served prompt is the chat template with its generation prompt,
tokenised as one text; what follows are tokens that the model itself makes: the answer, calls of tools among it, and
the end-of-turn token. So a chat is cut where the trained turns begin and end, and every piece is tokenised alone:

    <|im_start|>user↵Hi<|im_end|>↵<|im_start|>assistant↵ | Hello.<|im_end|> | ↵<|im_start|>user↵…
    prompt                                                 trained            prompt of the next turn

A turn of weight 0 is part of the next prompt, and what follows the last trained turn is left out. Nothing is cut off
to fit: an example of more than `max_length` tokens is a mistake, told with its line.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swapmeet_training.data.examples import Chat, Completion, Example, Function, Message, Preference, texts_of
from swapmeet_training.data.findings import Finding, Flawed, Mistakes, Notes
from swapmeet_training.data.rows import unit_of
from swapmeet_training.errors import DataError, TemplateError
from swapmeet_training.rendering import TEMPLATE_KINDS, Renderer

IGNORED = -100
"""The label of a token that is not trained: what torch's cross entropy leaves out."""

Piece = tuple[list[int], bool]
"""Tokens, and whether they are trained."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """An example's tokens; `labels` are the same tokens where trained and `IGNORED` elsewhere."""

    line: int
    tokens: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def trained(self) -> int:
        """How many tokens are trained."""
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference: the same prompt with the answer that is preferred, and with the other one."""

    line: int
    chosen: Sequence
    rejected: Sequence


Masked = Sequence | Pair


def sequences_of(masked: Masked) -> tuple[Sequence, ...]:
    """The sequence that an example is, or the two of a pair."""
    return (masked,) if isinstance(masked, Sequence) else (masked.chosen, masked.rejected)


def check_length(sequence: Sequence, max_length: int, notes: Notes) -> None:
    """Note it if a sequence has more tokens than that."""
    if len(sequence.tokens) > max_length:
        message = f"has {len(sequence.tokens)} tokens, more than max_length {max_length}"
        notes.mistake("", "too_long", message, "Shorten it or raise max_length.")


class Masker:
    """Tokenises examples for one base.

    Args:
        tokenizer: the base's transformers tokenizer.
        ends: ids of the tokens at which serving stops; empty where the base has none.
        max_length: the longest sequence accepted, in tokens; None for any.
        template: a chat template instead of the tokenizer's, in Jinja.
    """

    def __init__(
        self, tokenizer: Any, ends: frozenset[int], max_length: int | None, template: str | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._ends = ends
        end_texts = sorted(tokenizer.convert_ids_to_tokens(end) for end in ends)
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._special = sorted(special.union(end_texts))
        self._max_length = max_length
        self._renderer = Renderer(tokenizer, end_texts, template)

    @classmethod
    def of(cls, base: Path, tokenizer: Any, max_length: int | None, template: str | None = None) -> "Masker":
        """A masker that ends turns where the base's tokenizer and generation settings do."""
        ends = {tokenizer.eos_token_id}
        path = base / "generation_config.json"
        if path.is_file():
            named = json.loads(path.read_text()).get("eos_token_id")
            ends.update(named if isinstance(named, list) else [named])
        return cls(tokenizer, frozenset(ends - {None}), max_length, template)

    def sequences(self, examples: Iterable[Example], path: Path) -> list[Sequence] | list[Pair]:
        """All examples of a file, which are of one form, as tokens; `path` is named in errors.

        Raises:
            DataError: an example is too long, holds a special token, or has no trained token.
            TemplateError: the chat template can not mark the assistant's turns.
        """
        unit, all_masked = unit_of(path), list[Any]()
        mistakes = Mistakes(path, unit)
        for example in examples:
            notes = Notes(example.line)
            masked = self.examine(example, notes)
            for finding in notes.mistakes:
                if finding.kind in TEMPLATE_KINDS:
                    raise TemplateError(f"{path.name}: {unit} {example.line}: {finding}")
            mistakes.add(*notes.mistakes)
            all_masked.append(masked)
        mistakes.check()
        return all_masked

    def sequence(self, example: Chat | Completion) -> Sequence:
        """One example as tokens; raises as `sequences` does."""
        masked = self._masked(example)
        assert isinstance(masked, Sequence)
        return masked

    def pair(self, example: Preference) -> Pair:
        """Both sides of a preference as tokens; raises as `sequences` does."""
        masked = self._masked(example)
        assert isinstance(masked, Pair)
        return masked

    def _masked(self, example: Example) -> Masked:
        notes = Notes(example.line)
        masked = self.examine(example, notes)
        if masked is None:
            error = TemplateError if notes.mistakes[0].kind in TEMPLATE_KINDS else DataError
            raise error("\n".join(map(str, notes.mistakes)))
        return masked

    def examine(self, example: Example, notes: Notes) -> Masked | None:
        """One example as tokens, or None with what is wrong noted."""
        if isinstance(example, Completion):
            self._note_special(example, notes)
        else:
            self._refuse_special(example, notes)
        if notes.mistakes:
            return None
        try:
            masked = self._mask(example)
        except Flawed as flawed:
            notes.mistakes.append(flawed.finding)
            return None
        for sequence in sequences_of(masked):
            self._check(sequence, notes)
        return None if notes.mistakes else masked

    def _mask(self, example: Example) -> Masked:
        if isinstance(example, Completion):
            return _joined(example.line, self._completion(example))
        if isinstance(example, Chat):
            return _joined(example.line, self._turns(example.messages, example.tools, example.line))
        before = tuple(_untrained(message) for message in example.messages)
        both = (
            _joined(example.line, self._turns((*before, answer), example.tools, example.line))
            for answer in (example.chosen, example.rejected)
        )
        return Pair(example.line, *both)

    def _check(self, sequence: Sequence, notes: Notes) -> None:
        if self._max_length is not None:
            check_length(sequence, self._max_length, notes)
        if not sequence.trained:
            notes.mistake("", "nothing_trained", "has no trained token", "Give the assistant something to say.")
        elif self._ends and not self._ends.intersection(sequence.labels):
            message = "never trains the end of a turn, so the adapter would not learn to stop"
            notes.mistake("", "end_not_trained", message, "End the assistant's turns with the base's end token.")

    def _completion(self, example: Completion) -> list[Piece]:
        end = self._tokenizer.eos_token_id
        prompt = self._tokenizer(example.prompt)["input_ids"]
        completion = self._plain(example.completion) + ([] if end is None else [end])
        if end is not None and end in completion[:-1]:
            message = "holds the end-of-text token, which is added by itself"
            raise Flawed(Finding(example.line, "completion", "special_token", message, "Leave it out."))
        return [(prompt, False), (completion, True)]

    def _turns(self, messages: tuple[Message, ...], tools: tuple[Function, ...], line: int) -> list[Piece]:
        pieces: list[Piece] = []
        written = ""
        for index, message in enumerate(messages):
            if message.role == "assistant" and message.trained:
                prompt, answer = self._renderer.turn(messages[: index + 1], tools, written, line)
                pieces += [(self._plain(prompt[len(written) :]), False), (self._plain(answer), True)]
                written = prompt + answer
        return pieces

    def _refuse_special(self, example: Example, notes: Notes) -> None:
        for field, text in texts_of(example):
            for token in self._special:
                if token in text:
                    notes.mistake(field, "special_token", f"holds the special token {token}", "Leave it out.")

    def _note_special(self, example: Completion, notes: Notes) -> None:
        """In the texts of a completion they are taken as tokens, as serving takes them in a prompt."""
        for field, text in texts_of(example):
            found = [token for token in self._special if token in text]
            if found:
                message = f"holds {found[0]}, which is taken as the special token"
                notes.warn(field, "special_token", message, "Leave it out if text is meant.")

    def _plain(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def _joined(line: int, pieces: list[Piece]) -> Sequence:
    tokens = tuple(token for piece, _ in pieces for token in piece)
    labels = tuple(token if trained else IGNORED for piece, trained in pieces for token in piece)
    return Sequence(line, tokens, labels)


def _untrained(message: Message) -> Message:
    return Message(message.role, message.content, False, message.tool_calls, message.name, message.tool_call_id)
