"""What goes into the engine, what comes out, and what it knows of a request in between."""

import secrets
import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Literal

from swapmeet_serving.errors import InvalidRequest
from swapmeet_serving.mix import Mix, mix_of

DEFAULT_MAX_TOKENS = 1024
"""Where a request states no `max_tokens`: pages are set aside for all of them, so not the whole context."""

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 leave all tokens in.

    Without `max_tokens`, it is `DEFAULT_MAX_TOKENS` or what the context leaves. `seed` makes sampling
    repeatable, whatever else is in the batch. Generation ends before one of the `stop` texts, or after an
    end-of-text token unless `ignore_eos`.

    Raises:
        InvalidRequest: a value is out of range.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        wrong = {
            "max_tokens must be at least 1": self.max_tokens is not None and self.max_tokens < 1,
            "temperature must be between 0 and 2": not 0 <= self.temperature <= 2,
            "top_p must be above 0 and at most 1": not 0 < self.top_p <= 1,
            "top_k must be 0 (off) or more": self.top_k < 0,
            "stop texts must not be empty": "" in self.stop,
        }
        if any(wrong.values()):
            raise InvalidRequest("; ".join(text for text, found in wrong.items() if found) + ".")


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt in token ids.

    Attributes:
        adapter: an adapter's identity, a mix of several, or None for the bare base.
        tenant: whose request it is; tenants share the engine fairly, and no cached prefix.
        share: the tenant's weight among tenants.

    Raises:
        InvalidRequest: the mix or the share makes no sense.
    """

    id: str
    prompt: tuple[int, ...]
    adapter: str | Mix | None = None
    sampling: Sampling = GREEDY
    tenant: str = ""
    share: float = 1.0

    def __post_init__(self) -> None:
        mix_of(self.adapter)
        if not 0 < self.share < float("inf"):
            raise InvalidRequest(f"A tenant's share must be a number above 0, not {self.share}.")


@dataclass(slots=True)
class Timeline:
    """When a request reached each stage, by `time.monotonic`; 0 for what has not happened.

    `resident` says that its adapter was in memory already, so that `adapter_ready` stays 0.
    """

    submitted: float = field(default_factory=time.monotonic)
    resident: bool = False
    adapter_ready: float = 0.0
    admitted: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class Output:
    """What one step gave one request. The last one of a request has a `finish_reason` and a `timeline`.

    `text` lags behind `token_ids` where a character or a possible stop text is not complete yet.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    text: str = ""
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    timeline: Timeline | None = None


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
    seed: int = field(init=False)
    mix: Mix = field(init=False)
    timeline: Timeline = field(default_factory=Timeline)

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)
        given = self.request.sampling.seed
        self.seed = secrets.randbits(64) if given is None else given
        self.mix = tuple(sorted(mix_of(self.request.adapter)))

    @classmethod
    def of(cls, request: Request, room: int) -> "Sequence":
        """A request's sequence, where so many tokens fit in all."""
        left = max(1, room - len(request.prompt))
        return cls(request, request.sampling.max_tokens or min(DEFAULT_MAX_TOKENS, left))

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
