"""OpenAI's request shapes, as far as they are served; anything else is an error that names it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from swapmeet.gateway.message_wire import Message, Text
from swapmeet.gateway.output_wire import StructuredOutput
from swapmeet.gateway.tool_wire import Tools

Penalty = Annotated[float, Field(ge=-2, le=2)]
TokenId = Annotated[int, Field(ge=0)]
Tokens = Annotated[list[TokenId], Field(fail_fast=True)]  # of a million mistakes, telling one is enough

MOST_ENTRIES = 1024
"""Of a field that maps one thing to another."""

MOST_CHOICES = 128
"""Answers to one request, over all of its prompts."""


def _refusal(message: str) -> PydanticCustomError:
    """Why a value does not fit the others; raised by its own validator, so that all mistakes are told at once."""
    return PydanticCustomError("unfitting", "{message}", {"message": message})


def _not_too_long(value: Any) -> Any:
    """Looked at before the entries are: a body has room for a million wrong ones."""
    if isinstance(value, dict) and len(value) > MOST_ENTRIES:
        raise _refusal(f"{len(value)} entries, where {MOST_ENTRIES} are the most")
    return value


Short = BeforeValidator(_not_too_long)


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    continuous_usage_stats: bool = False


Stop = Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=16)]


class Generation(StructuredOutput, BaseModel):
    """What chat and plain completions share.

    `top_k`, `min_p`, `repetition_penalty`, `ignore_eos`, `return_token_ids` and `continuous_usage_stats` extend
    OpenAI's form, under the names that vLLM gives them. The last few fields change nothing here: they are taken as
    far as that is true.
    """

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(min_length=1, max_length=512)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    frequency_penalty: Penalty = 0
    presence_penalty: Penalty = 0
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] = 1.0
    logit_bias: Annotated[dict[TokenId, Annotated[float, Field(ge=-100, le=100)]], Short] = {}
    seed: int | None = None
    stop: Stop = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    return_token_ids: bool = False

    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: Annotated[dict[str, str], Short] | None = None
    store: Literal[False] = False
    service_tier: Literal["auto", "default"] = "auto"

    @property
    def most_tokens(self) -> int | None:
        """How many tokens an answer may have."""
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """How many likeliest tokens to tell beside each token's log-probability; None to tell nothing."""
        return None

    @property
    def echoes(self) -> bool:
        """Whether answers begin with their prompt."""
        return False

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

    @field_validator("stream_options")
    @classmethod
    def _only_streamed(cls, options: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if not info.data.get("stream", True):
            raise _refusal("only with stream: true")
        return options


class ChatCompletion(Tools, Generation):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    modalities: list[Literal["text"]] = ["text"]

    @property
    def most_tokens(self) -> int | None:
        """OpenAI's newer name counts."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """As many as `top_logprobs`, once `logprobs` asks for any."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @field_validator("top_logprobs")
    @classmethod
    def _only_with_logprobs(cls, top: int | None, info: ValidationInfo) -> int | None:
        if not info.data.get("logprobs", True):
            raise _refusal("only with logprobs: true")
        return top


def _several(prompt: Any) -> Any:
    """A list of prompts, where one prompt may stand for itself."""
    tokens = isinstance(prompt, list) and prompt and all(isinstance(each, int) for each in prompt)
    return [prompt] if tokens or isinstance(prompt, str) else prompt


class Completion(Generation):
    """Body of `POST /v1/completions`: prompts as text or as token ids.

    `max_tokens` 0 computes the prompt alone, to `echo` it with its log-probabilities.
    """

    prompt: Annotated[list[Text | Tokens], Field(min_length=1, fail_fast=True), BeforeValidator(_several)]
    max_tokens: Annotated[int, Field(ge=0)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=5, strict=True)] | None = None
    echo: bool = False
    best_of: int = 1
    suffix: Literal[""] = ""

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        """The prompts as replicas take them."""
        return [each if isinstance(each, str) else tuple(each) for each in self.prompt]

    @property
    def alternatives(self) -> int | None:
        """As many as `logprobs`."""
        return self.logprobs

    @property
    def echoes(self) -> bool:
        """As asked."""
        return self.echo

    @field_validator("prompt")
    @classmethod
    def _not_too_many(cls, prompt: list[Any], info: ValidationInfo) -> list[Any]:
        choices = len(prompt) * info.data.get("n", 1)
        if choices > MOST_CHOICES:
            raise _refusal(f"{choices} answers, prompts times n, where {MOST_CHOICES} are the most")
        return prompt

    @field_validator("best_of")
    @classmethod
    def _all_are_given(cls, best_of: int, info: ValidationInfo) -> int:
        if best_of != info.data.get("n", best_of):
            raise _refusal("only as many as n: every answer is given, and none compared")
        return best_of
