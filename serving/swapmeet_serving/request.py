"""What goes into the engine and what comes out."""

import random
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from swapmeet_serving.errors import InvalidRequest
from swapmeet_serving.mix import Mix, mix_of

if TYPE_CHECKING:
    from swapmeet_serving.grammars import Grammar

FinishReason = Literal["stop", "length", "cancelled", "error"]


MOST_ALTERNATIVES = 20
"""So many of the likeliest tokens can be told at each place."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens, and what to tell of them. Every value's default leaves it off.

    In this order, which is transformers': `logit_bias` is added; `repetition_penalty` divides the logits of tokens of
    the prompt and the answer (and multiplies those below zero); `frequency_penalty` is taken off for each time that a
    token stands in the answer, `presence_penalty` once; `temperature` divides, 0 being greedy; `top_k` keeps the
    likeliest tokens; `top_p` the likeliest up to and with the one that brings their sum to it; `min_p` those at least
    that likely relative to the likeliest.

    Attributes:
        max_tokens: most tokens to generate; without it, `DEFAULT_MAX_TOKENS` or what the context leaves. 0 computes
            the prompt alone.
        seed: makes sampling repeatable, whatever else is in the batch.
        stop: generation ends before one of these texts.
        ignore_eos: go on after an end-of-text token.
        logit_bias: pairs of token id and bias.
        logprobs: tell each generated token's log-probability, and those of so many likeliest tokens at its place.
        prompt_logprobs: the same for the prompt's tokens.

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
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        alternatives = [each for each in (self.logprobs, self.prompt_logprobs) if each is not None]
        wrong = {
            "max_tokens must not be below 0": self.max_tokens is not None and self.max_tokens < 0,
            "temperature must be between 0 and 2": not 0 <= self.temperature <= 2,
            "top_p must be above 0 and at most 1": not 0 < self.top_p <= 1,
            "top_k must be 0 (off) or more": self.top_k < 0,
            "min_p must be between 0 and 1": not 0 <= self.min_p <= 1,
            "presence_penalty must be between -2 and 2": not -2 <= self.presence_penalty <= 2,
            "frequency_penalty must be between -2 and 2": not -2 <= self.frequency_penalty <= 2,
            "repetition_penalty must be above 0 and at most 2": not 0 < self.repetition_penalty <= 2,
            "logit_bias must be between -100 and 100": not all(-100 <= bias <= 100 for _, bias in self.logit_bias),
            f"at most {MOST_ALTERNATIVES} logprobs can be told": not all(
                0 <= each <= MOST_ALTERNATIVES for each in alternatives
            ),
            "stop texts must not be empty": "" in self.stop,
        }
        if any(wrong.values()):
            raise InvalidRequest("; ".join(text for text, found in wrong.items() if found) + ".")

    @property
    def penalises(self) -> bool:
        """Whether the tokens so far matter for the next."""
        return bool(self.presence_penalty or self.frequency_penalty) or self.repetition_penalty != 1

    def of_choice(self, index: int) -> "Sampling":
        """For one of several answers to a prompt: with a seed of its own, the first's being the seed itself."""
        if not index or self.seed is None:
            return self
        return replace(self, seed=random.Random(f"{self.seed}:{index}").getrandbits(63))  # noqa: S311 (repeatable)


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt in token ids.

    Attributes:
        adapter: an adapter's identity, a mix of several, or None for the bare base.
        tenant: whose request it is; tenants share the engine fairly, and no cached prefix.
        share: the tenant's weight among tenants.
        grammar: what the answer keeps to, if anything; from `Engine.compile`.
        shown: special tokens that the answer's text shows.

    Raises:
        InvalidRequest: the mix or the share makes no sense.
    """

    id: str
    prompt: tuple[int, ...]
    adapter: str | Mix | None = None
    sampling: Sampling = GREEDY
    tenant: str = ""
    share: float = 1.0
    grammar: "Grammar | None" = None
    shown: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        mix_of(self.adapter)
        if not 0 < self.share < float("inf"):
            raise InvalidRequest(f"A tenant's share must be a number above 0, not {self.share}.")


def check_tokens(request: Request, vocabulary: int) -> None:
    """Refuse what a base of so many tokens can not compute.

    Raises:
        InvalidRequest: the prompt is empty or holds an unknown token, as may `logit_bias`.
    """
    if not request.prompt:
        raise InvalidRequest("The prompt is empty. Give at least one token.")
    if not 0 <= min(request.prompt) <= max(request.prompt) < vocabulary:
        raise InvalidRequest(f"The prompt holds a token id outside of 0 to {vocabulary - 1}.")
    unknown = [token for token, _ in request.sampling.logit_bias if not 0 <= token < vocabulary]
    if unknown:
        raise InvalidRequest(f"logit_bias names the token id {unknown[0]}, outside of 0 to {vocabulary - 1}.")


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
class Candidate:
    """A token at its place.

    Attributes:
        token_id: its id.
        piece: its bytes, which need not be whole characters.
        logprob: log-softmax of the model's own logits; None for a prompt's first token, which nothing predicts.
    """

    token_id: int
    piece: bytes
    logprob: float | None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """What the model held of a token.

    Attributes:
        chosen: the token that stands there.
        top: the likeliest tokens at its place, the likeliest first, as many as were asked for.
        shown: whether it is part of the text, which special tokens are not.
    """

    chosen: Candidate
    top: tuple[Candidate, ...] = ()
    shown: bool = True


@dataclass(frozen=True, slots=True)
class Output:
    """What one step gave one request. The last one of a request has a `finish_reason` and a `timeline`.

    `text` lags behind `token_ids` where a character or a possible stop text is not complete yet. `logprobs` has an
    entry for each of `token_ids` if asked for, and `prompt_logprobs` comes with the first output. `cached_tokens`
    of the prompt needed no computing.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    text: str = ""
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    timeline: Timeline | None = None
