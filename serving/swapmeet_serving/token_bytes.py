"""The bytes that each token of a vocabulary stands for."""

from typing import Any

from swapmeet_serving.detokenizer import HALF


class TokenBytes:
    """Looks tokens up in a tokenizer, and remembers what it found.

    A token is decoded behind another one, as it would stand in the middle of a text. Where that gives no whole
    characters, its name in the vocabulary tells its bytes: `<0xE2>`, or a character for each byte.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._anchor: list[int] = tokenizer("a", add_special_tokens=False).input_ids[-1:]
        self._before = self._decode([])
        self._known: dict[int, bytes] = {}

    def __getitem__(self, token: int) -> bytes:
        """A token's bytes; none for an id without a token, as some vocabularies have at their end."""
        if token not in self._known:
            self._known[token] = self._find(token)
        return self._known[token]

    def _find(self, token: int) -> bytes:
        text = self._decode([token]).removeprefix(self._before)
        if HALF not in text:
            return text.encode()
        name = self._tokenizer.convert_ids_to_tokens(token)
        if len(name) == 6 and name.startswith("<0x"):
            return bytes([int(name[3:5], 16)])
        return bytes(BYTES[letter] for letter in name) if set(name) <= set(BYTES) else text.encode()

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(
            self._anchor + tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text


def _byte_letters() -> dict[str, int]:
    """The alphabet of byte-level vocabularies: a byte is its Latin-1 character if that prints, else one from 256 on."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTES = _byte_letters()
