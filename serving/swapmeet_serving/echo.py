"""A prompt given back in front of its answers."""

from dataclasses import dataclass, replace
from typing import Any

from swapmeet_serving.calls import Chunk
from swapmeet_serving.request import TokenLogprob


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt's text, and which of its tokens are part of it.

    A tokenizer may put tokens of its own around a text, which the text does not show.
    """

    text: str
    shown: tuple[bool, ...]

    @classmethod
    def of(cls, given: object, tokens: tuple[int, ...], tokenizer: Any) -> "Echo":
        """Of a prompt as it was given, in text or tokens, and its tokens."""
        if isinstance(given, str):
            own = tokenizer(given, return_special_tokens_mask=True).special_tokens_mask
            return cls(given, tuple(not each for each in own))
        text = tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return cls(text, (True,) * len(tokens))

    def before(self, first: Chunk, logprobs: tuple[TokenLogprob, ...]) -> Chunk:
        """The first piece of an answer with the prompt in front, and its log-probabilities if there are any."""
        echoed = tuple(replace(each, shown=shown) for each, shown in zip(logprobs, self.shown, strict=False))
        return replace(first, text=self.text + first.text, logprobs=echoed + first.logprobs)
