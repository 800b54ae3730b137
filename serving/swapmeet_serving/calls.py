"""What a replica is asked, and the pieces it answers in. Both travel between processes."""

from collections.abc import Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass, replace

from swapmeet_serving.sequence import GREEDY, FinishReason, Sampling, TokenLogprob

Message = Mapping[str, str]
"""One turn of a conversation, with `role` and `content`."""


@dataclass(frozen=True, slots=True)
class Call:
    """One prompt's generations as a replica takes them: `messages`, or a `prompt` in text or token ids.

    Attributes:
        adapter: `TENANT/NAME@sha256:HEX`, or None for the bare base.
        n: how many answers, each sampled with a seed of its own.
        echo: begin each answer with its prompt's text and, if asked for, log-probabilities.
    """

    request_id: str
    messages: tuple[Message, ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    adapter: str | None = None
    sampling: Sampling = GREEDY
    n: int = 1
    echo: bool = False


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of the answer `index`; the last one has a `finish_reason`. The counts are of the answer so far.

    With `logprobs` asked for, there is one for each of `token_ids`; an echoed prompt's stand before them.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    index: int = 0


def join(pieces: Several[Chunk]) -> Chunk:
    """One answer's pieces as one."""
    return replace(
        pieces[-1],
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(token for piece in pieces for token in piece.token_ids),
        logprobs=tuple(each for piece in pieces for each in piece.logprobs),
    )
