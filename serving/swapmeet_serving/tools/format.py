"""What every form of tool calls has: where a call begins, how it is read, and the grammar that enforces one."""

import json
import secrets
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from swapmeet_registry.conversations import Function
from swapmeet_serving.constraints import Constraint, quote

MOST_CALLS = 16
"""Calls in one enforced answer: a small model does not know when to stop."""

TEXT = r"TEXT: /(.|\n)*/"

Parsed = tuple[str, str]
"""A call: the function's name, and its arguments as the JSON text of an object."""


@dataclass(frozen=True, slots=True)
class ToolFormat(ABC):
    """One family's way to write calls. `read` and `grammar` are for its module to define.

    Attributes:
        name: what the setting `tool_format` calls it.
        marker: the text before calls.
        end: the text after a call; empty where calls last to the end of the answer.
        arguments: the key of the arguments in a call's JSON.
    """

    name: str
    marker: str
    end: str
    arguments: str

    def call_begins(self, text: str, names: Collection[str], fresh: bool) -> int:  # noqa: ARG002
        """Where in a text a call begins or may begin, with the white space before it.

        Args:
            text: what is not known to be content.
            names: the functions there are.
            fresh: whether nothing of the answer came before.
        """
        place = text.find(self.marker)
        if place < 0:
            place = len(text) - partial_end(text, self.marker)
        return len(text[:place].rstrip())

    @abstractmethod
    def read(self, text: str) -> list[Parsed]:
        """The calls in a text that begins with one.

        Raises:
            ValueError: it is no call.
        """

    def new_id(self) -> str:
        """An id for a call."""
        return f"call_{secrets.token_hex(12)}"

    @abstractmethod
    def grammar(self, functions: Sequence[Function], marker: str, answer: str | None, *, free: bool, many: bool) -> str:
        """A Lark grammar of answers with calls, their arguments valid against the functions' schemas.

        Args:
            functions: those that may be called.
            marker: how Lark writes the marker, which may be a token.
            answer: the right side of a rule for answers without calls, if there may be any but free text.
            free: whether there may be free text, before calls or instead of them.
            many: whether there may be several calls.
        """

    def read_call(self, value: Any) -> Parsed:
        """A call from its JSON.

        Raises:
            ValueError: it is no call.
        """
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            raise ValueError("a call is an object with a name")
        arguments = value.get(self.arguments, {})
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        if not isinstance(arguments, dict):
            raise ValueError("arguments are an object")
        written = json.dumps(arguments, ensure_ascii=False)
        return value["name"], written.encode(errors="backslashreplace").decode()  # half a surrogate pair stays escaped

    def call_rules(self, functions: Sequence[Function]) -> str:
        """Lark rules for `call`: the JSON of a call of any of these functions."""
        lines = ["call: " + " | ".join(f"call_{number}" for number in range(len(functions)))]
        for number, function in enumerate(functions):
            opening = f'{{"name": {json.dumps(function["name"])}, "{self.arguments}": '
            lines.append(f'call_{number}: {quote(opening)} arguments_{number} "}}"')
            lines.append(f"arguments_{number}: {arguments_of(function).rule}")
        return "\n".join(lines)


def arguments_of(function: Function) -> Constraint:
    """What a function's arguments must be: an object, valid against its parameters.

    Raises:
        InvalidRequest: its schema can not be enforced.
    """
    return Constraint.json_schema({"type": "object"} | dict(function.get("parameters") or {}))


def partial_end(text: str, marker: str) -> int:
    """Length of the longest end of a text that begins a marker."""
    return next((size for size in range(min(len(marker), len(text)), 0, -1) if marker.startswith(text[-size:])), 0)
