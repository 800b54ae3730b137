"""What a replica is asked, and the pieces it answers in. Both travel between processes."""

from collections.abc import Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass, replace
from typing import Any, Literal

from swapmeet_serving.constraints import Constraint
from swapmeet_serving.mix import Mix, mix_of
from swapmeet_serving.request import GREEDY, FinishReason, Sampling, Timeline, TokenLogprob

Message = Mapping[str, Any]
"""One turn of a conversation as chat templates take it: `role` and `content`, and perhaps `tool_calls`, whose
arguments are objects."""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The functions that a model may call, each with `name`, and perhaps `description`, `parameters` and `strict`.

    Attributes:
        required: whether the answer must be a call.
        function: the only one that may be called, and then must be.
        parallel: whether one answer may make several calls.
    """

    functions: tuple[Mapping[str, Any], ...]
    required: bool = False
    function: str | None = None
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model made; `arguments` is the JSON text of an object."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Call:
    """One prompt's generations as a replica takes them: `messages`, or a `prompt` in text or token ids.

    The answer keeps to `constraint`, unless it calls one of the `tools`, which go with messages only.

    Attributes:
        adapter: `TENANT/NAME@sha256:HEX`, a mix of several, or None for the bare base.
        n: how many answers, each sampled with a seed of its own.
        echo: begin each answer with its prompt's text and, if asked for, log-probabilities.
        tenant: whose call it is; `share` is the tenant's weight among tenants.
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
    constraint: Constraint | None = None
    tools: ToolUse | None = None

    @property
    def template_from(self) -> str | None:
        """The adapter whose chat template is used: of a mix, the first."""
        return self.adapters[0] if self.adapters else None

    @property
    def mix(self) -> Mix:
        """The adapters and their weights."""
        return mix_of(self.adapter)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters that a replica needs for it."""
        return tuple(identity for identity, _ in self.mix)


Tier = Literal["device", "host", "disk", "registry"]
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
    finish_reason: FinishReason | Literal["tool_calls"] | None
    prompt_tokens: int
    completion_tokens: int
    tool_calls: tuple[ToolCall, ...] = ()
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
        tool_calls=tuple(made for piece in pieces for made in piece.tool_calls),
    )
