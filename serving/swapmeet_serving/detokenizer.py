"""Text from tokens as they come: never half a character, never the beginning of a stop text."""

from collections.abc import Container
from typing import Any

HALF = "�"
"""What a tokenizer writes for bytes that are not (yet) a character."""


def special_ids(tokenizer: Any) -> frozenset[int]:
    """All tokens that a text leaves out, whether or not the tokenizer has a name for their role."""
    marked = (number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset({*tokenizer.all_special_ids, *marked})


class Detokenizer:
    """Turns one sequence's tokens into text piece by piece; the pieces join to the decoded whole.

    Decodes a short window each time: tokens already given as text, because some tokenizers write a token
    differently at the start of a text, and those not given yet.
    """

    def __init__(self, tokenizer: Any, special: Container[int]) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._tokens: list[int] = []
        self._given = 0
        self._context = 0

    def add(self, token: int) -> str:
        """The text that is certain now; empty while a character is incomplete."""
        if token in self._special:
            return ""
        self._tokens.append(token)
        text = self._new_text()
        if text.endswith(HALF):
            return ""
        return self._give(text)

    def finish(self) -> str:
        """What is left, an incomplete character shown as U+FFFD."""
        return self._give(self._new_text())

    def _new_text(self) -> str:
        before = self._decode(self._tokens[self._context : self._given])
        return self._decode(self._tokens[self._context :])[len(before) :]

    def _give(self, text: str) -> str:
        if text:
            self._context, self._given = self._given, len(self._tokens)
        return text

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


class StopFilter:
    """Ends text before the first of some stop texts, and holds back what may turn out to begin one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """The part of the text so far unseen that certainly stands before any stop text."""
        self._held += text
        found = [place for place in (self._held.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self.stopped = True
            return self._take(min(found))
        return self._take(len(self._held) - self._possible_start())

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        return "" if self.stopped else self._take(len(self._held))

    def _take(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _possible_start(self) -> int:
        """Length of the longest end of the held text that begins some stop text."""
        sizes = ((stop, size) for stop in self._stops for size in range(min(len(stop), len(self._held) + 1)))
        return max((size for stop, size in sizes if self._held.endswith(stop[:size])), default=0)


class TextStream:
    """A sequence's text as its reader may see it."""

    def __init__(self, detokenizer: Detokenizer, stops: tuple[str, ...]) -> None:
        self._detokenizer = detokenizer
        self._filter = StopFilter(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop text was met."""
        return self._filter.stopped

    def add(self, token: int) -> str:
        """The text that a token makes certain."""
        return self._filter.add(self._detokenizer.add(token))

    def finish(self) -> str:
        """The rest, when no token follows."""
        return "" if self.stopped else self._filter.add(self._detokenizer.finish()) + self._filter.finish()
