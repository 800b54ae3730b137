"""Messages of a conversation in OpenAI's form, calls of tools and their results among them."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError


def _encodable(text: str) -> str:
    text.encode()  # a lone surrogate is no text that a tokenizer could read; pydantic tells the field
    return text


def _is_object(text: str) -> str:
    try:
        if isinstance(json.loads(text), dict):
            return text
    except (ValueError, RecursionError):
        pass
    raise PydanticCustomError("arguments", "arguments are the JSON text of an object")


Text = Annotated[str, AfterValidator(_encodable)]


class TextPart(BaseModel):
    """A part of a message's content; only text is served."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: Text


def _only_text(content: Any) -> Any:
    kinds = [part.get("type") for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    others = sorted({str(kind).encode(errors="replace").decode() for kind in kinds if kind not in (None, "text")})
    if others:
        message = f"only text is served; leave out the parts of type {', '.join(others)}"
        raise PydanticCustomError("parts", "{message}", {"message": message})
    return content


Content = Annotated[Text | list[TextPart], BeforeValidator(_only_text)]


class FunctionCall(BaseModel):
    """The function that a model called, and with what."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[Text, Field(min_length=1, max_length=64)]
    arguments: Annotated[Text, AfterValidator(_is_object)]


class ToolCall(BaseModel):
    """A call that the assistant made earlier. Clients send back what they got, `index` included."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[Text, Field(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None

    def as_template_input(self) -> dict[str, Any]:
        """The form that chat templates take: arguments as an object."""
        function = {"name": self.function.name, "arguments": json.loads(self.function.arguments)}
        return {"id": self.id, "type": "function", "function": function}


class Message(BaseModel):
    """One turn of a conversation. Only the assistant may have `tool_calls`, and then no content."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: Text | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Text | None = None
    refusal: Text | None = None

    @model_validator(mode="after")
    def _parts_that_go_together(self) -> "Message":
        if self.tool_calls and self.role != "assistant":
            raise PydanticCustomError("message", "only messages of the assistant have tool_calls")
        if (self.role == "tool") != bool(self.tool_call_id):
            raise PydanticCustomError("message", "messages with the role tool, and only those, have a tool_call_id")
        if self.content is None and not self.tool_calls:
            raise PydanticCustomError("message", "content is missing; only a message with tool_calls may have none")
        return self

    def as_template_input(self) -> dict[str, Any]:
        """The form that chat templates take: `developer` is OpenAI's newer word for `system`."""
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        turn: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.tool_calls:
            turn["tool_calls"] = [call.as_template_input() for call in self.tool_calls]
        return turn | {key: value for key in ("name", "tool_call_id") if (value := getattr(self, key))}
