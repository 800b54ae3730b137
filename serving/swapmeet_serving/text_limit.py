"""Texts that are too long for any sequence are refused before they are tokenized, which takes 300 bytes a token."""

from collections.abc import Mapping
from typing import Any

from swapmeet_serving.errors import ContextTooLong


class TextLimit:
    """What a sequence of `room` tokens can hold at most: each as long as the longest that the tokenizer has."""

    def __init__(self, tokenizer: Any, room: int) -> None:
        self._room = room
        self._most = room * max(map(len, tokenizer.get_vocab()), default=1)

    def check(self, characters: int) -> None:
        """Refuse a text of so many characters.

        Raises:
            ContextTooLong: it has more tokens than fit, whatever they are.
        """
        if characters > self._most:
            raise ContextTooLong(
                f"The prompt has {characters} characters, more than the {self._room} tokens that fit can hold. "
                "Shorten the prompt."
            )


def characters_of(value: object) -> int:
    """How many characters there are in all texts of JSON, names included."""
    found, left = 0, [value]
    while left:  # as JSON may be nested deeper than Python calls
        each = left.pop()
        if isinstance(each, str):
            found += len(each)
        elif isinstance(each, Mapping):
            left += [*each, *each.values()]
        elif isinstance(each, list | tuple):
            left += each
    return found
