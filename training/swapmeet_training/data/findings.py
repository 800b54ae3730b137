"""What is found in training data, each with its line, field, kind, sentence and remedy.

Kinds are stable names for machines. Where OpenAI's cookbook has a name for a mistake, it is that one.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from swapmeet_training.errors import DataError

MAX_MISTAKES = 20
"""So many are told by an error, and so many of each kind are listed in a report."""

Unit = str
"""What examples stand on: `line` of a JSON Lines file, `row` of a table."""

KINDS = {
    "byte_order_mark": "the file begins with a byte-order mark",
    "json_array": "the file is one JSON array instead of JSON Lines",
    "invalid_file": "the file or folder is none that can be read",
    "empty_file": "there is no example",
    "invalid_n_examples": "there are fewer examples than asked for",
    "too_many_rows": "there are more lines or rows than any run would take",
    "line_too_long": "a line is longer than any example may be",
    "not_utf8": "a line is not UTF-8",
    "not_json": "a line is not one whole JSON value",
    "data_type": "a value is of the wrong type",
    "unrecognized_form": "an example is neither a chat, nor a completion, nor a preference",
    "mixed_forms": "examples are not all of one form",
    "unrecognized_key": "an example has a key that nothing reads",
    "missing_key": "an example lacks a key",
    "empty_text": "a text is empty",
    "lone_surrogate": "a text holds half a surrogate pair",
    "missing_messages_list": "there is no list of messages",
    "message_missing_key": "a message lacks a key",
    "message_unrecognized_key": "a message has a key that its role does not have",
    "unrecognized_role": "a message has an unknown role",
    "missing_content": "a message has no content",
    "unsupported_content": "a part of a content is not text",
    "invalid_weight": "a weight is neither 0 nor 1",
    "example_missing_assistant_message": "the assistant says nothing",
    "last_message_not_assistant": "the last message is not the assistant's",
    "last_message_is_assistant": "the input of a preference ends with the assistant's turn",
    "nothing_trained": "no token would be trained",
    "missing_user_message": "the assistant speaks before the user does",
    "system_not_first": "a system message follows others",
    "invalid_tool": "the definition of a tool is wrong",
    "duplicate_tool": "two tools have one name",
    "deprecated_functions": "functions are given in the form that tools replaced",
    "invalid_tool_call": "a call of a tool is wrong",
    "invalid_arguments": "a call's arguments are not the JSON text of an object",
    "unknown_function": "a call names a function that is not among the tools",
    "calls_without_tools": "tools are called, and none are defined",
    "parallel_calls": "several calls stand in a turn that may have one",
    "unknown_tool_call": "a result answers no call",
    "unanswered_tool_call": "a call has no result, and the chat goes on",
    "missing_output": "a preference lacks one of its two answers",
    "identical_outputs": "both answers of a preference are the same",
    "special_token": "a text holds a special token",
    "too_long": "an example has more tokens than the longest sequence may have",
    "end_not_trained": "the end of the assistant's turn is never trained",
    "no_chat_template": "there is no chat template",
    "template_refuses": "the chat template refuses an example",
    "template_rewrites": "the chat template writes turns differently once others follow",
    "template_without_prompt": "the chat template does not begin a turn with what asks for it",
    "template_without_end": "the chat template does not end turns where serving stops",
    "duplicate": "an example stands in the file twice",
    "leakage": "an example stands in the other file, too",
    "not_compared": "examples of the other file can not be read, and so not be compared",
}
"""Every kind, and what it means."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One mistake or warning. `line` counts from 1, and is None where it is the whole file's; `field` is a path."""

    line: int | None
    field: str
    kind: str
    message: str
    fix: str

    def __str__(self) -> str:
        return " ".join(part for part in (self.field, f"{self.message}.", self.fix) if part)

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)


class Flawed(Exception):
    """An example can not be used; carries the finding that says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


class Notes:
    """What is found in one example: mistakes, and warnings that leave it usable."""

    __slots__ = ("line", "mistakes", "warnings")

    def __init__(self, line: int | None) -> None:
        self.line = line
        self.mistakes: list[Finding] = []
        self.warnings: list[Finding] = []

    def mistake(self, field: str, kind: str, message: str, fix: str) -> None:
        """Note what makes the example unusable."""
        self.mistakes.append(Finding(self.line, field, kind, message, fix))

    def warn(self, field: str, kind: str, message: str, fix: str) -> None:
        """Note what is probably not meant."""
        self.warnings.append(Finding(self.line, field, kind, message, fix))


class Mistakes:
    """Collects what is wrong in one file, and raises it as one error."""

    def __init__(self, path: Path, unit: Unit = "line") -> None:
        self._path = path
        self._unit = unit
        self._found: list[Finding] = []

    def add(self, *findings: Finding) -> None:
        """Note mistakes; the last one there is room for raises."""
        for finding in findings:
            self._found.append(finding)
            if len(self._found) == MAX_MISTAKES:
                self.check()

    def check(self) -> None:
        """Raise what was found, if anything was."""
        if self._found:
            raise DataError(f"{self._path.name}" + told(self._found, self._unit, len(self._found) == MAX_MISTAKES))


def told(findings: list[Finding], unit: Unit, more: bool) -> str:
    """Findings as they go on after a file's name: a sentence each, with the line."""
    if len(findings) == 1 and findings[0].line is None and not findings[0].field:
        return f" {findings[0]}"
    sentences = [str(each) if each.line is None else f"{unit} {each.line}: {each}" for each in findings]
    return (" (there may be more)" if more else "") + ": " + "\n".join(sentences)


class Listing:
    """Findings of a whole file, however many: all are counted, and the first of each kind are kept."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._kept: dict[str, list[Finding]] = {}

    def add(self, *findings: Finding) -> None:
        """Count findings, and keep them where there is room."""
        for finding in findings:
            self.counts[finding.kind] = self.counts.get(finding.kind, 0) + 1
            kept = self._kept.setdefault(finding.kind, [])
            if len(kept) < MAX_MISTAKES:
                kept.append(finding)

    def add_all(self, count: int, kind: str, make: Callable[[int], Finding]) -> None:
        """Count so many findings of a kind, of which `make` gives the first when asked by number."""
        if count:
            self.counts[kind] = self.counts.get(kind, 0) + count
            kept = self._kept.setdefault(kind, [])
            kept += [make(number) for number in range(min(count, MAX_MISTAKES - len(kept)))]

    @property
    def total(self) -> int:
        """How many there are."""
        return sum(self.counts.values())

    def listed(self) -> tuple[Finding, ...]:
        """Those that were kept, the whole file's first and then by line."""
        found = [finding for kept in self._kept.values() for finding in kept]
        return tuple(sorted(found, key=lambda finding: -1 if finding.line is None else finding.line))
