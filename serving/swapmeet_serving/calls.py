"""What a replica is asked, and the pieces it answers in. Both travel between processes."""

from collections.abc import Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass, replace
from typing import Literal

from swapmeet_serving.mix import Mix, mix_of
from swapmeet_serving.sequence import GREEDY, FinishReason, Sampling, Timeline, TokenLogprob

Message = Mapping[str, str]
"""One turn of a conversation, with `role` and `content`."""


@dataclass(frozen=True, slots=True)
class Call:
    """One prompt's generations as a replica takes them: `messages`, or a `prompt` in text or token ids.

    Attributes:
        adapter: `TENANT/NAME@sha256:HEX`, a mix of several, or None for the bare base.
        n: how many answers, each sampled with a seed of its own.
        tenant: whose call it is; `share` is the tenant's weight among tenants.
        echo: begin each answer with its prompt's text and, if asked for, log-probabilities.
    """

    request_id: str
    messages: tuple[Message, ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    adapter: str | Mix | None = None
    sampling: Sampling = GREEDY
    n: int = 1
    echo: bool = False
    tenant: str = ""
    share: float = 1.0

    @property
    def mix(self) -> Mix:
        """The adapters and their weights."""
        return mix_of(self.adapter)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters that a replica needs for it."""
        return tuple(identity for identity, _ in self.mix)


Tier = Literal["device", "disk", "registry"]
"""Where an adapter was when a call for it came: in memory, in the replica's folder, or still to be fetched."""


@dataclass(frozen=True, slots=True)
class Stages:
    """Where and how a call was answered.

    Attributes:
        replica: which replica.
        adapter_from: the adapter's tier; None for the bare base.
        milliseconds: since the replica took the call, by stage: `prompt` (rendered and tokenized), `adapter`
            (in memory, had it not been), `admitted` (to its first step), `first_token`, `finished`.
    """

    replica: str
    adapter_from: Tier | None
    milliseconds: dict[str, float]

    @classmethod
    def of(cls, timeline: Timeline, replica: str, tier: Tier | None, began: float) -> "Stages":
        """Those of an engine's timeline, where the adapter was in `tier` unless in memory; `began` is monotonic."""
        reached = {
            "prompt": timeline.submitted,
            "adapter": timeline.adapter_ready,
            "admitted": timeline.admitted,
            "first_token": timeline.first_token,
            "finished": timeline.ended,
        }
        milliseconds = {stage: round(1000 * (at - began), 2) for stage, at in reached.items() if at}
        return cls(replica, "device" if timeline.resident else tier, milliseconds)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of the answer `index`; the last one has a `finish_reason` and `stages`.

    The counts are of the answer so far. With `logprobs` asked for, there is one for each of `token_ids`; an echoed
    prompt's stand before them.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    index: int = 0
    stages: Stages | None = None


def join(pieces: Several[Chunk]) -> Chunk:
    """One answer's pieces as one."""
    return replace(
        pieces[-1],
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(token for piece in pieces for token in piece.token_ids),
        logprobs=tuple(each for piece in pieces for each in piece.logprobs),
    )
