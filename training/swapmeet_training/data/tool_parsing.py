"""Tools and calls of them, as OpenAI's API has them: `tools` with `tool_calls`, and the older `functions`."""

import json
import re
from typing import Any

from swapmeet_training.data.examples import Function, ToolCall
from swapmeet_training.data.fields import is_encodable, no_others, present, quoted, required_text, text
from swapmeet_training.data.findings import Notes

MOST_TOOLS = 128
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
FUNCTION_KEYS = {"name", "description", "parameters", "strict"}
LONGEST_ID = 256
LEGACY_ID = "call00000"
"""The id of a `function_call`, which has none: nine letters and digits, as Mistral's templates want."""


def parse_tools(value: dict[str, Any], where: str, notes: Notes) -> tuple[Function, ...]:
    """The functions of an example's `tools` or `functions`; those in order are returned whatever the others are."""
    key = "functions" if "functions" in value else "tools"
    if "tools" in value and "functions" in value:
        message = "stands beside tools, which replaced it"
        notes.mistake(f"{where}functions", "invalid_tool", message, "Keep the tools only.")
    items, field = value.get(key, []), f"{where}{key}"
    if not isinstance(items, list) or len(items) > MOST_TOOLS:
        notes.mistake(field, "invalid_tool", f"must be a list of at most {MOST_TOOLS} tools", "Write such a list.")
        return ()
    if key == "functions" and items:
        message = "is trained as tools, which is how serving is told of functions"
        notes.warn(field, "deprecated_functions", message, "Ask with tools when you use the adapter.")
    functions: dict[str, Function] = {}
    for index, item in enumerate(items):
        place = f"{field}[{index}]"
        function = _function(item, place, notes) if key == "functions" else _tool(item, place, notes)
        if function and function["name"] in functions:
            message = f"is the second of the name {function['name']}"
            notes.mistake(place, "duplicate_tool", message, "Name each function once.")
        elif function:
            functions[function["name"]] = function
    return tuple(functions.values())


def _tool(value: Any, where: str, notes: Notes) -> Function | None:
    tool = present(value) if isinstance(value, dict) else {}
    if tool.get("type") != "function" or "function" not in tool:
        message = "is no object with the type 'function' and a function"
        notes.mistake(where, "invalid_tool", message, 'Write {"type": "function", "function": {…}}.')
        return None
    no_others(tool, {"type", "function"}, f"{where}.", "invalid_tool", notes)
    return _function(tool["function"], f"{where}.function", notes)


def _function(value: Any, where: str, notes: Notes) -> Function | None:
    if not isinstance(value, dict):
        notes.mistake(where, "invalid_tool", "is not an object with a name", 'Write {"name": …, "parameters": {…}}.')
        return None
    function, before = present(value), len(notes.mistakes)
    no_others(function, FUNCTION_KEYS, f"{where}.", "invalid_tool", notes)
    name = function.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        message = f"is {quoted(name)}, not 1 to 64 letters, digits, underscores and dashes"
        notes.mistake(f"{where}.name", "invalid_tool", message, "Write such a name.")
    if "description" in function:
        text(function["description"], f"{where}.description", notes, may_be_empty=True)
    if not isinstance(function.get("strict", False), bool):
        notes.mistake(f"{where}.strict", "invalid_tool", "is neither true nor false", "Write one of them.")
    _check_schema(function.get("parameters", {}), f"{where}.parameters", notes)
    return function if len(notes.mistakes) == before else None


def _check_schema(schema: Any, where: str, notes: Notes) -> None:
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        message = "is not a JSON schema of the type object"
        notes.mistake(where, "invalid_tool", message, 'Write {"type": "object", "properties": {…}}.')
        return
    try:
        is_encodable(json.dumps(schema, ensure_ascii=False, allow_nan=False), where, notes)
    except (TypeError, ValueError, RecursionError) as error:
        notes.mistake(where, "invalid_tool", f"can not be written as JSON ({error})", "Leave out what JSON has not.")


def parse_calls(message: dict[str, Any], where: str, notes: Notes) -> tuple[ToolCall, ...]:
    """The calls of an assistant's message, in `tool_calls` or the older `function_call`."""
    if "function_call" in message:
        if "tool_calls" in message:
            note = "stands beside tool_calls, which replaced it"
            notes.mistake(f"{where}.function_call", "invalid_tool_call", note, "Keep the tool_calls only.")
        return _called(message["function_call"], LEGACY_ID, f"{where}.function_call", notes)
    items, field = message.get("tool_calls", []), f"{where}.tool_calls"
    if not isinstance(items, list):
        notes.mistake(field, "invalid_tool_call", "must be a list of calls", "Write [{…}].")
        return ()
    calls: dict[str, ToolCall] = {}
    for index, item in enumerate(items):
        place = f"{field}[{index}]"
        for call in _call(item, place, notes):
            if call.id in calls:
                notes.mistake(f"{place}.id", "invalid_tool_call", f"is the second {quoted(call.id)}", "Number them.")
            calls[call.id] = call
    return tuple(calls.values())


def _call(value: Any, where: str, notes: Notes) -> tuple[ToolCall, ...]:
    call = present(value) if isinstance(value, dict) else {}
    if call.get("type", "function") != "function" or "function" not in call:
        note = "is no object with id, type 'function' and a function"
        fix = 'Write {"id": …, "type": "function", "function": {"name": …, "arguments": …}}.'
        notes.mistake(where, "invalid_tool_call", note, fix)
        return ()
    no_others(call, {"id", "type", "function", "index"}, f"{where}.", "invalid_tool_call", notes)
    identity = required_text(call, "id", f"{where}.", notes, "invalid_tool_call")
    if identity and len(identity) > LONGEST_ID:
        notes.mistake(f"{where}.id", "invalid_tool_call", f"has more than {LONGEST_ID} characters", "Shorten it.")
    return _called(call["function"], identity or "", f"{where}.function", notes)


def _called(value: Any, identity: str, where: str, notes: Notes) -> tuple[ToolCall, ...]:
    if not isinstance(value, dict):
        message = "is not an object with name and arguments"
        notes.mistake(where, "invalid_tool_call", message, 'Write {"name": …, "arguments": "{…}"}.')
        return ()
    function, before = present(value), len(notes.mistakes)
    no_others(function, {"name", "arguments"}, f"{where}.", "invalid_tool_call", notes)
    name = required_text(function, "name", f"{where}.", notes, "invalid_tool_call")
    arguments = _arguments(function.get("arguments"), f"{where}.arguments", notes)
    if name is None or arguments is None or len(notes.mistakes) > before:
        return ()
    return (ToolCall(identity, name, arguments),)


def _arguments(value: Any, where: str, notes: Notes) -> str | None:
    """As JSON text; an object is taken, too, because data sets for chat templates have it."""
    try:
        read = json.loads(value, parse_constant=_refuse) if isinstance(value, str) else value
        written = json.dumps(read, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        message = f"is not JSON ({error})"
    else:
        if isinstance(read, dict):
            whole = is_encodable(written, where, notes)
            return (value if isinstance(value, str) else written) if whole else None
        message = "is not the JSON text of an object"
    notes.mistake(where, "invalid_arguments", message, 'Write the arguments as text: "{\\"city\\": \\"Rome\\"}".')
    return None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
