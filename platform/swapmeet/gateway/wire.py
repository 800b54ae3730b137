"""OpenAI's request shapes, as far as they are served; anything else is an error that names it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from swapmeet.gateway.message_wire import Message, Text
from swapmeet.gateway.output_wire import StructuredOutput
from swapmeet.gateway.tool_wire import Tools

Zero = Annotated[float, Field(ge=0, le=0)]
"""A parameter that is not served yet, but which many clients send at its neutral value."""


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False


Stop = Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=16)]


class Generation(StructuredOutput, BaseModel):
    """What chat and plain completions share.

    `top_k`, `ignore_eos` and `return_token_ids` extend OpenAI's form, under the names that vLLM gives them.
    """

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(min_length=1, max_length=512)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    n: Literal[1] = 1
    frequency_penalty: Zero = 0
    presence_penalty: Zero = 0
    logprobs: Literal[False] = False
    seed: int | None = None
    stop: Stop = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    return_token_ids: bool = False
    user: str | None = None
    metadata: dict[str, str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, value: Any) -> Any:
        """OpenAI lets null stand for any default and one string for a list of stops."""
        if not isinstance(value, dict):
            return value
        given = {name: item for name, item in value.items() if item is not None}
        if isinstance(given.get("stop"), str):
            given["stop"] = [given["stop"]]
        return given


class ChatCompletion(Tools, Generation):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None


class Completion(Generation):
    """Body of `POST /v1/completions`: one prompt, as text or as token ids."""

    prompt: Text | list[Annotated[int, Field(ge=0)]]
    max_tokens: Annotated[int, Field(ge=1)] | None = 16
