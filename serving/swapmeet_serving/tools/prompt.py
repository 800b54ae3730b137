"""Messages as chat templates take them, and tools for templates that know none.

Such a template is told in Hermes' form: the system message lists the functions and says how to call them, earlier
calls stand in the assistant's text, and results come from the user.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from swapmeet_serving.tools.hermes import CLOSE, OPEN

INSTRUCTIONS = f"""You can call functions. These are their signatures, one JSON object a line:
<tools>
{{tools}}
</tools>
To call one, answer with its name and its arguments as JSON, in this element and with nothing after it:
{OPEN}
{{{{"name": "the function's name", "arguments": {{{{"an argument's name": "its value"}}}}}}}}
{CLOSE}"""


def as_plain_text(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages without tools, calls or results of their own, for a template that knows only text."""
    plain = [_plain(message) for message in messages]
    if tools:
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        instructions = INSTRUCTIONS.format(tools=listed)
        if plain and plain[0]["role"] == "system":
            plain[0] = plain[0] | {"content": f"{plain[0]['content']}\n\n{instructions}"}
        else:
            plain.insert(0, {"role": "system", "content": instructions})
    return _joined_results(plain)


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool":
        return {"role": "tool", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if not message.get("tool_calls"):
        return dict(message)
    written = [f"{OPEN}\n{json.dumps(call['function'], ensure_ascii=False)}\n{CLOSE}" for call in message["tool_calls"]]
    content = "\n".join(part for part in (message["content"], *written) if part)
    return {key: value for key, value in message.items() if key != "tool_calls"} | {"content": content}


def _joined_results(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results as turns of the user, those in a row as one, because templates may insist that turns alternate."""
    joined: list[dict[str, Any]] = []
    previous = ""
    for message in messages:
        if message["role"] == "tool" and previous == "tool":
            joined[-1]["content"] += "\n" + message["content"]
        else:
            joined.append(message | {"role": "user"} if message["role"] == "tool" else message)
        previous = message["role"]
    return joined
