"""What a replica is asked, and the pieces it answers in. Both travel between processes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from swapmeet_serving.constraints import Constraint
from swapmeet_serving.sequence import GREEDY, FinishReason, Sampling

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
    """One generation as a replica takes it: `messages`, or a `prompt` in text or token ids.

    `adapter` is `TENANT/NAME@sha256:HEX`, or None for the bare base. The answer keeps to `constraint`, unless it
    calls one of the `tools`, which go with messages only.
    """

    request_id: str
    messages: tuple[Message, ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    adapter: str | None = None
    sampling: Sampling = GREEDY
    constraint: Constraint | None = None
    tools: ToolUse | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer; the last one has a `finish_reason`. The counts are of the answer so far."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | Literal["tool_calls"] | None
    prompt_tokens: int
    completion_tokens: int
    tool_calls: tuple[ToolCall, ...] = ()
