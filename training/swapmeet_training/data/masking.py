"""Turn examples into tokens, and mark which of them are trained: the assistant's, and the end of its turn.

The tokens are those that serving will see. A served prompt is the chat template with its generation prompt,
tokenised as one text; what follows are tokens that the model itself makes: the answer, calls of tools among it, and
the end-of-turn token. So a chat is cut where the trained turns begin and end, and every piece is tokenised alone:

    <|im_start|>user↵Hi<|im_end|>↵<|im_start|>assistant↵ | Hello.<|im_end|> | ↵<|im_start|>user↵…
    prompt                                                 trained            prompt of the next turn

A turn of weight 0 is part of the next prompt, and what follows the last trained turn is left out. Some templates
write earlier turns differently once others follow, without their thoughts, for instance; then each turn is trained in
a sequence of its own, after the prompt that serving would make. Nothing is cut off to fit: an example of more than
`max_length` tokens is a mistake, told with its line.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from swapmeet_training.data.examples import Chat, Completion, Example, Function, Message, Preference, texts_of
from swapmeet_training.data.findings import Finding, Flawed, Mistakes, Notes
from swapmeet_training.data.rendering import TEMPLATE_KINDS, Renderer
from swapmeet_training.data.rows import unit_of
from swapmeet_training.errors import DataError, TemplateError

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


def end_tokens(base: Path, tokenizer: Any) -> frozenset[int]:
    """The ids of the tokens at which serving stops: those that the base's tokenizer and generation settings name."""
    ends = {tokenizer.eos_token_id}
    path = base / "generation_config.json"
    if path.is_file():
        named = json.loads(path.read_text()).get("eos_token_id")
        ends.update(named if isinstance(named, list) else [named])
    return frozenset(ends - {None})


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
        return cls(tokenizer, end_tokens(base, tokenizer), max_length, template)

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
            all_masked += self.examine(example, notes)
            for finding in notes.mistakes:
                if finding.kind in TEMPLATE_KINDS:
                    raise TemplateError(f"{path.name}: {unit} {example.line}: {finding}")
            mistakes.add(*notes.mistakes)
        mistakes.check()
        return all_masked

    def sequence(self, example: Chat | Completion) -> Sequence:
        """One example as tokens, where these are one sequence; raises as `sequences` does."""
        (masked,) = self._masked(example)
        assert isinstance(masked, Sequence)
        return masked

    def pair(self, example: Preference) -> Pair:
        """Both sides of a preference as tokens; raises as `sequences` does."""
        (masked,) = self._masked(example)
        assert isinstance(masked, Pair)
        return masked

    def _masked(self, example: Example) -> tuple[Masked, ...]:
        notes = Notes(example.line)
        masked = self.examine(example, notes)
        if notes.mistakes:
            error = TemplateError if notes.mistakes[0].kind in TEMPLATE_KINDS else DataError
            raise error("\n".join(map(str, notes.mistakes)))
        return masked

    def examine(self, example: Example, notes: Notes) -> tuple[Masked, ...]:
        """One example as tokens; nothing if there are mistakes, which are noted."""
        if isinstance(example, Completion):
            self._note_special(example, notes)
        else:
            self._refuse_special(example, notes)
        if notes.mistakes:
            return ()
        try:
            masked = self._mask(example, notes)
        except Flawed as flawed:
            notes.mistakes.append(flawed.finding)
            return ()
        for sequence in (sequence for each in masked for sequence in sequences_of(each)):
            self._check(sequence, notes)
        return () if notes.mistakes else masked

    def _mask(self, example: Example, notes: Notes) -> tuple[Masked, ...]:
        line = example.line
        if isinstance(example, Completion):
            return (_joined(line, self._completion(example)),)
        if isinstance(example, Preference):
            before = tuple(replace(message, trained=False) for message in example.messages)
            answers = ((*before, answer) for answer in (example.chosen, example.rejected))
            (chosen,), (rejected,) = (self._chat(messages, example.tools, line) for messages in answers)
            return (Pair(line, _joined(line, chosen), _joined(line, rejected)),)
        parts = self._chat(example.messages, example.tools, line)
        if len(parts) > 1:
            message = f"is trained as {len(parts)} sequences: the chat template writes turns differently later on"
            notes.warn("", "template_rewrites", message, "Give another chat template if that takes too long.")
        return tuple(_joined(line, pieces) for pieces in parts)

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
        prompt = self._tokenizer(example.prompt, verbose=False)["input_ids"]
        completion = self._plain(example.completion) + ([] if end is None else [end])
        if end is not None and end in completion[:-1]:
            message = "holds the end-of-text token, which is added by itself"
            raise Flawed(Finding(example.line, "completion", "special_token", message, "Leave it out."))
        return [(prompt, False), (completion, True)]

    def _chat(self, messages: tuple[Message, ...], tools: tuple[Function, ...], line: int) -> list[list[Piece]]:
        """The pieces of a chat: of one sequence, or of several where a prompt does not begin with the one before."""
        parts: list[list[Piece]] = []
        written = ""
        for index, message in enumerate(messages):
            if message.role == "assistant" and message.trained:
                prompt, answer = self._renderer.turn(messages[: index + 1], tools, line)
                if not parts or not prompt.startswith(written):
                    parts.append([])
                    written = ""
                parts[-1] += [(self._plain(prompt[len(written) :]), False), (self._plain(answer), True)]
                written = prompt + answer
        return parts

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
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _joined(line: int, pieces: list[Piece]) -> Sequence:
    tokens = tuple(token for piece, _ in pieces for token in piece)
    labels = tuple(token if trained else IGNORED for piece, trained in pieces for token in piece)
    return Sequence(line, tokens, labels)
