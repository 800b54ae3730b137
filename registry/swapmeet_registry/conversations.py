"""How a conversation is put to a chat template, the same where an adapter is trained and where it is served.

Templates that know tools are given them. Others are told in Hermes' form: the system message lists the functions and
says how to call them, earlier calls stand in the assistant's text, and results come from the user.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Turn = Mapping[str, Any]
"""One message as chat templates take it: `role`, `content`, perhaps `tool_calls`, whose arguments are objects."""

Function = Mapping[str, Any]
"""A function as OpenAI's API defines it: `name`, and perhaps `description`, `parameters` and `strict`."""

ToolForm = Literal["hermes", "llama", "mistral"]

HERMES_OPEN, HERMES_CLOSE = "<tool_call>", "</tool_call>"
LLAMA_MARKER = "<|python_tag|>"
MISTRAL_MARKER = "[TOOL_CALLS]"

INSTRUCTIONS = f"""You can call functions. These are their signatures, one JSON object a line:
<tools>
{{tools}}
</tools>
To call one, answer with its name and its arguments as JSON, in this element and with nothing after it:
{HERMES_OPEN}
{{{{"name": "the function's name", "arguments": {{{{"an argument's name": "its value"}}}}}}}}
{HERMES_CLOSE}"""


def tool_form(template: str) -> ToolForm | None:
    """The form in which a chat template shows calls, as its text tells.

    None where the template knows nothing of tools, or has them in a form of its own.
    """
    if "tools" not in template:
        return None
    if HERMES_OPEN in template and not any(other in template for other in ("<function=", "<arg_key>")):
        return "hermes"  # the others use the same element for something else than JSON
    if LLAMA_MARKER in template or '"parameters": dictionary of argument name' in template:
        return "llama"  # smaller models' templates have no token, and ask for `parameters`
    if MISTRAL_MARKER in template and "[ARGS]" not in template:
        return "mistral"  # later ones name the function outside of JSON
    return None


def template_input(
    turns: Sequence[Turn], functions: Sequence[Function], *, knows_tools: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """The messages and the tools that a template is given; `knows_tools` says whether it takes any.

    No tools are None: templates ask whether there are some.
    """
    tools = [_as_tool(function) for function in functions]
    if not knows_tools:
        return _as_plain_text(turns, tools), None
    return [dict(turn) for turn in turns], tools or None


def _as_tool(function: Function) -> dict[str, Any]:
    shown = {key: function[key] for key in ("name", "description", "parameters") if function.get(key) is not None}
    return {"type": "function", "function": {"parameters": {"type": "object", "properties": {}}} | shown}


def _as_plain_text(turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages without tools, calls or results of their own, for a template that knows only text."""
    plain = [_plain(turn) for turn in turns]
    if tools:
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        instructions = INSTRUCTIONS.format(tools=listed)
        if plain and plain[0]["role"] == "system":
            plain[0] = plain[0] | {"content": f"{plain[0]['content']}\n\n{instructions}"}
        else:
            plain.insert(0, {"role": "system", "content": instructions})
    return _joined_results(plain)


def _plain(turn: Turn) -> dict[str, Any]:
    if turn["role"] == "tool":
        return {"role": "tool", "content": f"<tool_response>\n{turn['content']}\n</tool_response>"}
    if not turn.get("tool_calls"):
        return dict(turn)
    written = [
        f"{HERMES_OPEN}\n{json.dumps(call['function'], ensure_ascii=False)}\n{HERMES_CLOSE}"
        for call in turn["tool_calls"]
    ]
    content = "\n".join(part for part in (turn["content"], *written) if part)
    return {key: value for key, value in turn.items() if key != "tool_calls"} | {"content": content}


def _joined_results(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results as turns of the user, those in a row as one, because templates may insist that turns alternate."""
    joined: list[dict[str, Any]] = []
    previous = ""
    for turn in turns:
        if turn["role"] == "tool" and previous == "tool":
            joined[-1]["content"] += "\n" + turn["content"]
        else:
            joined.append(turn | {"role": "user"} if turn["role"] == "tool" else turn)
        previous = turn["role"]
    return joined
