"""What an answer must look like: a JSON schema, a regular expression, one of some texts, or a Lark grammar.

A `Constraint` is plain data that travels between processes; `grammars` compiles it to what masks tokens.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from swapmeet_serving.errors import InvalidRequest

LONGEST = 256 << 10
"""Characters of a constraint."""

LONGEST_LARK = 64 << 10
"""Of a grammar: a chain of 13,000 rules takes minutes to compile, one of 5,000 a second."""

MOST_REPEATED = 10_000
"""What nested repetitions may multiply to: above, one mask can take a tenth of a second and more."""

LARGEST_DIVISOR = 10_000
"""`multipleOf` becomes an automaton with as many states as the divisor has steps."""

LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False}
"""JSON on one line: where white space is free, small models write nothing else until their tokens are spent."""

Kind = Literal["json_schema", "regex", "choice", "lark"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """A rule that a whole answer keeps to. Make one with the class methods.

    Raises:
        InvalidRequest: it is too long, or of a shape that takes too long to follow.
    """

    kind: Kind
    text: str

    def __post_init__(self) -> None:
        longest = LONGEST_LARK if self.kind == "lark" else LONGEST
        if len(self.text) > longest:
            raise InvalidRequest(f"The constraint has {len(self.text)} characters; at most {longest} are taken.")
        try:
            self.text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"The constraint is no text: {error}.") from error
        for repeated in self._repetitions():
            if repeated > MOST_REPEATED:
                raise InvalidRequest(
                    f"Repetitions inside repetitions multiply to {repeated}; at most {MOST_REPEATED} can be enforced."
                )

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any]) -> "Constraint":
        """JSON that is valid against a schema, its properties in the schema's order."""
        try:
            _check_divisors(schema)
            return cls("json_schema", json.dumps({**schema, "x-guidance": LAYOUT}, ensure_ascii=False))
        except RecursionError as error:
            raise InvalidRequest("The JSON schema is nested too deeply.") from error

    @classmethod
    def json_object(cls) -> "Constraint":
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> "Constraint":
        """Text that a regular expression matches as a whole; in Rust's syntax, so without look-around."""
        return cls("regex", pattern)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> "Constraint":
        """One of these texts."""
        return cls("choice", json.dumps(list(texts), ensure_ascii=False))

    @classmethod
    def lark(cls, grammar: str) -> "Constraint":
        """Text that a context-free grammar derives from `start`, in llguidance's variant of Lark."""
        return cls("lark", grammar)

    @property
    def rule(self) -> str:
        """The right side of a Lark rule that means the same, to build larger grammars from.

        Raises:
            InvalidRequest: it is a grammar of its own.
        """
        match self.kind:
            case "json_schema":
                return f"%json {self.text}"
            case "choice":
                return " | ".join(quote(text) for text in json.loads(self.text))
            case "regex":
                bare = re.sub(r"\\.|/", lambda found: found[0] if len(found[0]) > 1 else r"\/", self.text, flags=re.S)
                return f"/{bare}/"
            case "lark":
                raise InvalidRequest("A grammar can not be combined with tools. Leave one of them out.")

    def _repetitions(self) -> Iterator[int]:
        match self.kind:
            case "regex":
                yield nested_repetitions(self.text)
            case "json_schema":
                yield from map(nested_repetitions, _patterns(json.loads(self.text)))
            case "lark" | "choice":  # grammars are held to the time that they take
                pass


def quote(text: str) -> str:
    """A text as Lark writes it."""
    return json.dumps(text).replace("\x7f", r"\u007f")


_DIGITS = 15
"""A longer count is as good as this many nines: Python refuses to read or to write numbers of thousands of digits."""

_PIECE = re.compile(r"\\.|\[(?:\\.|[^\\\]])++(?:\]|\\?\Z)|\{(?:\d*+,)?(\d++),?\}|[()]|.", re.S)
"""A piece of a regular expression; a class without an end lasts to the end, so that none is looked at twice."""


def nested_repetitions(pattern: str) -> int:
    """The largest product of counts `{n}` or `{m,n}` that stand one inside another; a count by itself is 1."""
    most = 1
    open_groups: list[tuple[int, int]] = [(1, 0)]  # product of counts below, and their depth, per open group
    last = (1, 0)
    for found in _PIECE.finditer(pattern):
        piece = found[0]
        if piece == "(":
            open_groups.append((1, 0))
            last = (1, 0)
        elif piece == ")" and len(open_groups) > 1:
            last = open_groups.pop()
        elif found[1]:
            count = int(found[1]) if len(found[1]) <= _DIGITS else 10**_DIGITS - 1
            last = (min(last[0] * max(1, count), 10**_DIGITS - 1), last[1] + 1)
        else:
            last = (1, 0)
        open_groups[-1] = max(open_groups[-1], last)
        if last[1] > 1:
            most = max(most, last[0])
    return most


def _patterns(schema: Any) -> Iterator[str]:
    """Every regular expression in a schema; and those that only look like one, which does no harm."""
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "pattern" and isinstance(value, str):
                yield value
            if key == "patternProperties" and isinstance(value, dict):
                yield from value
            yield from _patterns(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _patterns(value)


def _check_divisors(schema: Any) -> None:
    if isinstance(schema, Mapping):
        divisor = schema.get("multipleOf")
        if isinstance(divisor, int | float) and _steps(divisor) > LARGEST_DIVISOR:
            raise InvalidRequest(
                f"multipleOf {divisor} can not be enforced: without its point, it must be at most {LARGEST_DIVISOR}."
            )
        for value in schema.values():
            _check_divisors(value)
    elif isinstance(schema, list):
        for value in schema:
            _check_divisors(value)


def _steps(divisor: float) -> float:
    """A divisor without its decimal point: 2.5 and 0.025 are 25."""
    _, digits, exponent = Decimal(repr(divisor)).normalize().as_tuple()
    return math.inf if isinstance(exponent, str) else int(Decimal((0, digits, max(exponent, 0))))
