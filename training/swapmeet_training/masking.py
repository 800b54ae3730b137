"""Turn examples into tokens, and mark which of them are trained: the assistant's, and the end of its turn.

The tokens are those that serving will see. A served prompt is the chat template with its generation prompt,
tokenised as one text; what follows are tokens that the model itself makes: the answer and the end-of-turn
token. So a chat is cut where the assistant's turns begin and end, and every piece is tokenised on its own:

    <|im_start|>user↵Hi<|im_end|>↵<|im_start|>assistant↵ | Hello.<|im_end|> | ↵<|im_start|>user↵…
    prompt                                                 trained            prompt of the next turn

Nothing is cut off to fit: an example of more than `max_length` tokens is a mistake, told with its line.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swapmeet_training.data import Chat, Completion, Example, Message, Mistakes
from swapmeet_training.errors import DataError, TemplateError

IGNORED = -100
"""The label of a token that is not trained: what torch's cross entropy leaves out."""


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
    """Two answers to the same prompt, of which the chosen one should become the likelier."""

    line: int
    chosen: Sequence
    rejected: Sequence


class Masker:
    """Tokenises examples for one base.

    Args:
        tokenizer: the base's transformers tokenizer.
        ends: ids of the tokens at which serving stops; empty where the base has none.
        max_length: the longest sequence accepted, in tokens.
    """

    def __init__(self, tokenizer: Any, ends: frozenset[int], max_length: int) -> None:
        self._tokenizer = tokenizer
        self._ends = ends
        self._end_texts = sorted(tokenizer.convert_ids_to_tokens(end) for end in ends)
        self._special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._max_length = max_length

    @classmethod
    def of(cls, base: Path, tokenizer: Any, max_length: int) -> "Masker":
        """A masker that ends turns where the base's tokenizer and generation settings do."""
        ends = {tokenizer.eos_token_id}
        path = base / "generation_config.json"
        if path.is_file():
            named = json.loads(path.read_text()).get("eos_token_id")
            ends.update(named if isinstance(named, list) else [named])
        return cls(tokenizer, frozenset(ends - {None}), max_length)

    def sequences(self, examples: Iterable[Example], path: Path) -> list[Sequence]:
        """All examples as tokens; `path` is named in errors.

        Raises:
            DataError: an example is too long, holds a special token, or has no trained token.
            TemplateError: the chat template can not mark the assistant's turns.
        """
        mistakes, sequences = Mistakes(path), []
        for example in examples:
            try:
                sequences.append(self.sequence(example))
            except DataError as error:
                mistakes.add(example.line, str(error))
        mistakes.check()
        return sequences

    def sequence(self, example: Example) -> Sequence:
        """One example as tokens."""
        pieces = self._chat(example) if isinstance(example, Chat) else self._completion(example)
        tokens = tuple(token for piece, _ in pieces for token in piece)
        labels = tuple(token if trained else IGNORED for piece, trained in pieces for token in piece)
        sequence = Sequence(example.line, tokens, labels)
        if len(tokens) > self._max_length:
            raise DataError(
                f"has {len(tokens)} tokens, more than max_length {self._max_length}. Shorten it or raise max_length."
            )
        if not sequence.trained:
            raise DataError("has no trained token. Give the assistant something to say.")
        if self._ends and not self._ends.intersection(labels):
            raise DataError("never trains the end of a turn, so the adapter would not learn to stop.")
        return sequence

    def _completion(self, example: Completion) -> list[tuple[list[int], bool]]:
        end = self._tokenizer.eos_token_id
        prompt = self._tokenizer(example.prompt)["input_ids"]
        completion = self._plain(example.completion) + ([] if end is None else [end])
        if end is not None and end in completion[:-1]:
            raise DataError("completion holds the end-of-text token, which is added by itself. Leave it out.")
        return [(prompt, False), (completion, True)]

    def _chat(self, example: Chat) -> list[tuple[list[int], bool]]:
        pieces: list[tuple[list[int], bool]] = []
        written = ""
        for index, message in enumerate(example.messages):
            self._refuse_special(message, index)
            if message.role == "assistant":
                prompt = self._render(example.messages[:index], generation_prompt=True)
                answered = self._render(example.messages[: index + 1], generation_prompt=False)
                if not (prompt.startswith(written) and answered.startswith(prompt)):
                    raise TemplateError(
                        "The base's chat template can not mark the assistant's turn, because it writes a turn "
                        "differently once others follow. Train with 'prompt' and 'completion' instead."
                    )
                answer = self._until_end(answered[len(prompt) :])
                pieces += [(self._plain(prompt[len(written) :]), False), (self._plain(answer), message.trained)]
                written = prompt + answer
        return pieces

    def _until_end(self, text: str) -> str:
        """The assistant's turn up to its end token: templates often write a line break after it."""
        if not self._ends:
            return text
        cuts = [text.index(end) + len(end) for end in self._end_texts if end in text]
        if not cuts:
            raise TemplateError(
                f"The base's chat template does not end the assistant's turn with {' or '.join(self._end_texts)}, "
                "at which serving stops. Name the right eos_token_id in the base's generation_config.json."
            )
        return text[: min(cuts)]

    def _refuse_special(self, message: Message, index: int) -> None:
        for token in self._special:
            if token in message.content:
                raise DataError(f"messages[{index}].content holds the special token {token}. Leave it out.")

    def _render(self, messages: tuple[Message, ...], *, generation_prompt: bool) -> str:
        import jinja2

        if self._tokenizer.chat_template is None:
            raise TemplateError("The base has no chat template. Train with 'prompt' and 'completion' instead.")
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return str(
                self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation_prompt)
            )
        except jinja2.TemplateError as error:
            raise DataError(f"is refused by the base's chat template: {error}.") from error

    def _plain(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
