"""What the engine knows of a request under way."""

import secrets
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swapmeet_serving.adjustments import Adjustments
from swapmeet_serving.mix import Mix, mix_of
from swapmeet_serving.request import Request, Timeline, TokenLogprob

if TYPE_CHECKING:
    from swapmeet_serving.grammars import Matcher

DEFAULT_MAX_TOKENS = 1024
"""Where a request states no `max_tokens`, and the context has room."""


@dataclass(eq=False, slots=True)
class Sequence:
    """A request under way.

    Attributes:
        tokens: prompt and what was generated.
        pages: hold the keys and values of the first `cached` tokens, and have room for all tokens.
        cached: tokens computed so far; 0 again after a preemption.
        cached_prompt: tokens of the prompt that came out of the prefix cache when first admitted.
        prefix: the node in the prefix cache that stands for the first `shared` pages.
        shared: pages that the prefix cache knows.
        prompt_logprobs: what is known of the prompt's tokens and was not given out yet.
        adjustments: what penalties and biases change; None without any.
        mix: its adapters in an order of their own, so that equal mixes compute equally.
    """

    request: Request
    max_tokens: int
    tokens: list[int] = field(init=False)
    pages: list[int] = field(default_factory=list)
    cached: int = 0
    cached_prompt: int | None = None
    prefix: Hashable = None
    shared: int = 0
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    adjustments: Adjustments | None = field(init=False)
    seed: int = field(init=False)
    mix: Mix = field(init=False)
    timeline: Timeline = field(default_factory=Timeline)
    matcher: "Matcher | None" = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)
        sampling = self.request.sampling
        adjusts = sampling.penalises or sampling.logit_bias
        self.adjustments = Adjustments(sampling, self.request.prompt) if adjusts else None
        self.seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        self.mix = tuple(sorted(mix_of(self.request.adapter)))
        self.matcher = self.request.grammar.matcher() if self.request.grammar else None

    @classmethod
    def of(cls, request: Request, room: int) -> "Sequence":
        """A request's sequence, where so many tokens fit in all."""
        asked, left = request.sampling.max_tokens, max(1, room - len(request.prompt))
        return cls(request, min(DEFAULT_MAX_TOKENS, left) if asked is None else asked)

    def append(self, token: int) -> None:
        """Add a generated token."""
        self.tokens.append(token)
        if self.adjustments:
            self.adjustments.add(token)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters' identities."""
        return tuple(identity for identity, _ in self.mix)

    @property
    def most_tokens(self) -> int:
        """How long the sequence can become."""
        return len(self.request.prompt) + self.max_tokens

    @property
    def completion_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def missing(self) -> int:
        """Tokens that are not computed yet: one while decoding."""
        return len(self.tokens) - self.cached

    @property
    def wants_prompt_logits(self) -> bool:
        """Whether the logits of all the prompt's rows are wanted, so that all have to be computed."""
        return self.request.sampling.prompt_logprobs is not None and not self.completion_tokens


@dataclass(frozen=True, slots=True)
class Slice:
    """What a step computes of a sequence: so many tokens from the first that is not cached."""

    sequence: Sequence
    count: int

    @property
    def tokens(self) -> list[int]:
        """The token ids."""
        begin = self.sequence.cached
        return self.sequence.tokens[begin : begin + self.count]

    @property
    def complete(self) -> bool:
        """Whether it reaches the sequence's end, so that the next token can be chosen."""
        return self.count == self.sequence.missing
