"""What goes into the engine, what comes out, and what it knows of a request in between."""

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from swapmeet_serving.errors import InvalidRequest

if TYPE_CHECKING:
    from swapmeet_serving.grammars import Grammar, Matcher

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
    """One prompt in token ids; `adapter` is an adapter's identity, or None for the bare base.

    The answer keeps to `grammar` (from `Engine.compile`), if there is one, and its text shows the special
    tokens `shown`.
    """

    id: str
    prompt: tuple[int, ...]
    adapter: str | None = None
    sampling: Sampling = GREEDY
    grammar: "Grammar | None" = None
    shown: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Output:
    """What one step gave one request. The last one of a request has a `finish_reason`.

    `text` lags behind `token_ids` where a character or a possible stop text is not complete yet.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    text: str = ""
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(eq=False, slots=True)
class Sequence:
    """A request under way: its tokens, and the pages that hold keys and values of the first `cached` of them."""

    request: Request
    max_tokens: int
    tokens: list[int] = field(init=False)
    pages: list[int] = field(default_factory=list)
    cached: int = 0
    seed: int = field(init=False)
    matcher: "Matcher | None" = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)
        given = self.request.sampling.seed
        self.seed = secrets.randbits(64) if given is None else given
        self.matcher = self.request.grammar.matcher() if self.request.grammar else None

    @classmethod
    def of(cls, request: Request, room: int) -> "Sequence":
        """A request's sequence, where so many tokens fit in all."""
        left = max(1, room - len(request.prompt))
        return cls(request, request.sampling.max_tokens or min(DEFAULT_MAX_TOKENS, left))

    @property
    def adapter(self) -> str | None:
        """The adapter's identity, or None for the bare base."""
        return self.request.adapter

    @property
    def most_tokens(self) -> int:
        """How long the sequence can become."""
        return len(self.request.prompt) + self.max_tokens

    @property
    def completion_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def decoding(self) -> bool:
        """Whether the next step computes a single token on top of cached ones."""
        return self.cached > 0
