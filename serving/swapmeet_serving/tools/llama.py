"""Llama 3: an answer that is nothing but `{"name": …, "parameters": …}`, sometimes after a token of its own."""

import json
from collections.abc import Collection, Sequence

from swapmeet_registry.conversations import LLAMA_MARKER as MARKER
from swapmeet_registry.conversations import Function
from swapmeet_serving.tools.format import MOST_CALLS, Parsed, ToolFormat, partial_end


class Llama(ToolFormat):
    """Calls are the whole answer, or what follows the token; several are separated by semicolons."""

    __slots__ = ()

    def call_begins(self, text: str, names: Collection[str], fresh: bool) -> int:
        """At the token, or at the very start if the text may become the JSON of a call."""
        if fresh and _may_be_call("".join(text.split()), names):
            return 0
        place = text.find(self.marker)
        if place < 0:
            place = len(text) - partial_end(text, self.marker)
        return len(text[:place].rstrip())

    def read(self, text: str) -> list[Parsed]:
        """All calls up to the end of the answer."""
        rest = text.strip().removeprefix(MARKER).strip()
        decoder = json.JSONDecoder()
        calls: list[Parsed] = []
        while rest or not calls:
            value, end = decoder.raw_decode(rest)
            calls.append(self.read_call(value))
            rest = rest[end:].strip().removeprefix(";").strip()
        return calls

    def grammar(self, functions: Sequence[Function], marker: str, answer: str | None, *, free: bool, many: bool) -> str:  # noqa: ARG002
        """Calls, or free text that does not begin like one."""
        start = f'call ("; " call){{0,{MOST_CALLS - 1}}}' if many else "call"
        rules = [self.call_rules(functions)]
        if free:
            rules.append(r"OTHER: /([^{\s](.|\n)*)?/")
            start += " | OTHER"
        elif answer:
            rules.append(f"answer: {answer}")
            start += " | answer"
        return "\n".join([f"start: {start}", *rules])


def _may_be_call(text: str, names: Collection[str]) -> bool:
    """Whether a text without white space begins, or is the beginning of, a call of one of these functions."""
    for name in names:
        for opening in (f'{{"name":"{name}"', f'{{"type":"function","name":"{name}"'):
            if text.startswith(opening) or opening.startswith(text):
                return True
    return False


LLAMA = Llama("llama", MARKER, "", "parameters")
