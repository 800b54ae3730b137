"""Hermes and Qwen: each call is JSON in an XML element, `<tool_call>{"name": …, "arguments": …}</tool_call>`."""

import json
from collections.abc import Sequence

from swapmeet_registry.conversations import HERMES_CLOSE as CLOSE
from swapmeet_registry.conversations import HERMES_OPEN as OPEN
from swapmeet_registry.conversations import Function
from swapmeet_serving.tools.format import MOST_CALLS, TEXT, Parsed, ToolFormat


class Hermes(ToolFormat):
    """Calls stand anywhere in the text, one element each."""

    __slots__ = ()

    def read(self, text: str) -> list[Parsed]:
        """The call of one element, whose end may be missing at the end of an answer."""
        body = text.strip().removeprefix(OPEN).removesuffix(CLOSE)
        return [self.read_call(json.loads(body))]

    def grammar(self, functions: Sequence[Function], marker: str, answer: str | None, *, free: bool, many: bool) -> str:
        """Elements one after another, or in free text, where an opened one must be a call."""
        rules = [self.call_rules(functions)]
        body = rf'"\n" call "\n{CLOSE}"'
        if free:
            token = not marker.startswith('"')
            rules += [f"opening: TEXT {marker}" if token else f"opening[lazy]: TEXT {marker}", TEXT]
            start = f"(opening {body})* TEXT" if many else f"TEXT | opening {body}"
        else:
            rules.append(f"element: {marker} {body}")
            start = rf'element ("\n" element){{0,{MOST_CALLS - 1}}}' if many else "element"
            if answer:
                rules.append(f"answer: {answer}")
                start += " | answer"
        return "\n".join([f"start: {start}", *rules])


HERMES = Hermes("hermes", OPEN, CLOSE, "arguments")
