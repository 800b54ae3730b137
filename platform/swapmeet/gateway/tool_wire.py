"""Tools in OpenAI's form: their definitions in requests, and calls of them in answers."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from swapmeet.errors import RequestRefused
from swapmeet.gateway.message_wire import Text
from swapmeet_serving import Chunk
from swapmeet_serving.calls import ToolCall, ToolUse

MOST_TOOLS = 128


def _of_an_object(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type", "object") != "object":
        raise PydanticCustomError("parameters", "parameters are a JSON schema of the type object")
    return schema


def _refuse(_: Any) -> None:
    raise PydanticCustomError("legacy", "this parameter is not served; use tools and tool_choice")


Legacy = Annotated[None, BeforeValidator(_refuse)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Function(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    description: Text | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(_of_an_object)] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A tool; functions are the only kind."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: Function


class NamedFunction(BaseModel):
    """The name of a function."""

    model_config = ConfigDict(extra="forbid")

    name: str


class ChosenTool(BaseModel):
    """The one function that must be called."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: NamedFunction


class Tools(BaseModel):
    """The fields of a chat request that are about tools."""

    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] = []
    tool_choice: Literal["none", "auto", "required"] | ChosenTool = "auto"
    parallel_tool_calls: bool = True
    functions: Legacy = None
    function_call: Legacy = None

    def tool_use(self) -> ToolUse | None:
        """The tools, if any may be called. With the choice "none" the model is not told of them.

        Raises:
            RequestRefused: two have one name, or the chosen one is not there.
        """
        names = [tool.function.name for tool in self.tools]
        for number, name in enumerate(names):
            if name in names[:number]:
                where = f"tools.{number}.function.name"
                raise RequestRefused(f"{where}: there is another function of the name {name}.", where)
        chosen = self.tool_choice.function.name if isinstance(self.tool_choice, ChosenTool) else None
        required = self.tool_choice == "required" or chosen is not None
        if required and not names:
            raise RequestRefused("tool_choice: there are no tools to choose from.", "tool_choice")
        if chosen is not None and chosen not in names:
            raise RequestRefused(f"tool_choice.function.name: no tool has the name {chosen}.", "tool_choice")
        if not names or self.tool_choice == "none":
            return None
        functions = tuple(tool.function.model_dump(exclude_none=True) for tool in self.tools)
        return ToolUse(functions, required, chosen, self.parallel_tool_calls)


def add_tool_calls(choice: dict[str, Any], chunk: Chunk) -> dict[str, Any]:
    """A choice of an answer, or of a part of one, with the calls of its chunk."""
    if chunk.tool_calls and "message" in choice:
        choice["message"] |= {"content": chunk.text or None, "tool_calls": [_call(each) for each in chunk.tool_calls]}
    elif chunk.tool_calls:
        choice["delta"]["tool_calls"] = [{"index": each.index} | _call(each) for each in chunk.tool_calls]
    return choice


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
