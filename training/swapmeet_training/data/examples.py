"""What training files hold, once read: chats, completions and preferences."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "developer", "user", "assistant", "tool"]

Function = Mapping[str, Any]
"""A function that the assistant may call: `name`, and perhaps `description`, `parameters` and `strict`."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function by the assistant; `arguments` is the JSON text of an object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat; `trained` is false for an assistant's turn of weight 0.

    A result of a tool, of the role `tool`, names the call it answers in `tool_call_id`.
    """

    role: Role
    content: str
    trained: bool = True
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    tool_call_id: str | None = None

    def as_turn(self) -> dict[str, Any]:
        """The form that chat templates take, as serving gives it: `developer` is a newer word for `system`."""
        turn: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": self.content}
        if self.tool_calls:
            turn["tool_calls"] = [
                {"id": each.id, "type": "function", "function": {"name": each.name, "arguments": _object(each)}}
                for each in self.tool_calls
            ]
        return turn | {key: value for key in ("name", "tool_call_id") if (value := getattr(self, key))}


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat that ends with the assistant's turn, the functions it may call, and the line it stands on."""

    line: int
    messages: tuple[Message, ...]
    tools: tuple[Function, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt with the text that should follow it, and the line it stands on."""

    line: int
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Preference:
    """A chat up to the assistant's turn, with an answer that is preferred to another (DPO).

    `keys` are what the file calls the two answers.
    """

    line: int
    messages: tuple[Message, ...]
    chosen: Message
    rejected: Message
    tools: tuple[Function, ...] = ()
    keys: tuple[str, str] = ("preferred_output", "non_preferred_output")


Example = Chat | Completion | Preference

Form = Literal["chat", "completion", "preference"]

FORMS: Mapping[type, Form] = {Chat: "chat", Completion: "completion", Preference: "preference"}


def content_of(example: Example) -> bytes:
    """What an example teaches, as bytes that are equal where it is the same: without line, weights and ids."""
    if isinstance(example, Completion):
        content: tuple[Any, ...] = (example.prompt, example.completion)
    elif isinstance(example, Chat):
        content = ([_said(message) for message in example.messages], example.tools)
    else:
        turns = (*example.messages, example.chosen, example.rejected)
        content = ("preference", [_said(message) for message in turns], example.tools)
    return repr(content).encode()


def texts_of(example: Example) -> Iterator[tuple[str, str]]:
    """Every text of an example that a model reads, with the path of its field."""
    if isinstance(example, Completion):
        yield "prompt", example.prompt
        yield "completion", example.completion
        return
    preference = isinstance(example, Preference)
    for index, message in enumerate(example.messages):
        yield from _texts(message, f"input.messages[{index}]" if preference else f"messages[{index}]")
    if isinstance(example, Preference):
        for key, message in zip(example.keys, (example.chosen, example.rejected), strict=True):
            yield from _texts(message, f"{key}[0]")
    for index, function in enumerate(example.tools):
        yield f"{'input.' if preference else ''}tools[{index}]", json.dumps(function, ensure_ascii=False)


def _said(message: Message) -> tuple[Any, ...]:
    calls = [(each.name, each.arguments) for each in message.tool_calls]
    return (message.role, message.content, calls, message.name)


def _texts(message: Message, where: str) -> Iterator[tuple[str, str]]:
    yield f"{where}.content", message.content
    if message.name:
        yield f"{where}.name", message.name
    if message.tool_call_id:
        yield f"{where}.tool_call_id", message.tool_call_id
    for index, each in enumerate(message.tool_calls):
        yield f"{where}.tool_calls[{index}].id", each.id
        yield f"{where}.tool_calls[{index}].function.name", each.name
        # as a template writes them: decoded, and without JSON's own escapes of letters
        decoded = json.dumps(_object(each), ensure_ascii=False)
        yield f"{where}.tool_calls[{index}].function.arguments", decoded


def _object(call: ToolCall) -> dict[str, Any]:
    arguments: dict[str, Any] = json.loads(call.arguments)
    return arguments
