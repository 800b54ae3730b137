"""Mistral: a token, then all calls in one list, `[TOOL_CALLS][{"name": …, "arguments": …}]`."""

import json
import secrets
import string
from collections.abc import Sequence

from swapmeet_registry.conversations import MISTRAL_MARKER as MARKER
from swapmeet_registry.conversations import Function
from swapmeet_serving.tools.format import MOST_CALLS, TEXT, Parsed, ToolFormat

ID_LENGTH = 9
"""Mistral's templates refuse ids of any other length, or with other than letters and digits."""


class Mistral(ToolFormat):
    """Calls end the answer."""

    __slots__ = ()

    def read(self, text: str) -> list[Parsed]:
        """All calls of the list."""
        calls = json.loads(text.strip().removeprefix(MARKER))
        if not isinstance(calls, list) or not calls:
            raise ValueError("calls are a list")
        return [self.read_call(call) for call in calls]

    def new_id(self) -> str:
        """An id that the templates take back."""
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(ID_LENGTH))

    def grammar(self, functions: Sequence[Function], marker: str, answer: str | None, *, free: bool, many: bool) -> str:
        """The token and the list, perhaps after free text, or free text alone."""
        rules = [self.call_rules(functions)]
        listed = f'"[" call (", " call){{0,{MOST_CALLS - 1}}} "]"' if many else '"[" call "]"'
        if free:
            token = not marker.startswith('"')
            rules += [f"opening: TEXT {marker}" if token else f"opening[lazy]: TEXT {marker}", TEXT]
            start = f"TEXT | opening {listed}"
        else:
            start = f"{marker} {listed}"
            if answer:
                rules.append(f"answer: {answer}")
                start += " | answer"
        return "\n".join([f"start: {start}", *rules])


MISTRAL = Mistral("mistral", MARKER, "", "arguments")
