"""What a replica is asked, and the pieces it answers in. Both travel between processes."""

from collections.abc import Mapping
from dataclasses import dataclass

from swapmeet_serving.sequence import GREEDY, FinishReason, Sampling

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

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters that a replica needs for it."""
        return (self.adapter,) if self.adapter else ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer; the last one has a `finish_reason`. The counts are of the answer so far."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    prompt_tokens: int
    completion_tokens: int
