"""What a replica is asked, and the pieces it answers in. Both travel between processes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from swapmeet_serving.sequence import GREEDY, FinishReason, Sampling, Timeline

Message = Mapping[str, str]
"""One turn of a conversation, with `role` and `content`."""


@dataclass(frozen=True, slots=True)
class Call:
    """One generation as a replica takes it: `messages`, or a `prompt` in text or token ids.

    `adapter` is `TENANT/NAME@sha256:HEX`, or None for the bare base.
    """

    request_id: str
    messages: tuple[Message, ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    adapter: str | None = None
    sampling: Sampling = GREEDY


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
    """A piece of an answer; the last one has a `finish_reason` and `stages`. The counts are of the answer so far."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    prompt_tokens: int
    completion_tokens: int
    stages: Stages | None = None
