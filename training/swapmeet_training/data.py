"""Read training files: JSON Lines, every line either a chat or a prompt with its completion.

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"prompt": "…", "completion": "…"}

Files are read line by line, so memory is bounded by the longest line. Reading goes on after a mistake, and
up to `MAX_MISTAKES` of them are told at once.
"""

import codecs
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal, cast

from swapmeet_training.errors import DataError

MAX_MISTAKES = 20
MAX_LINE = 16 << 20
BOMS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
ROLES = ("system", "user", "assistant")

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat; `trained` is false for an assistant's turn of weight 0."""

    role: Role
    content: str
    trained: bool = True


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat that ends with the assistant's turn, and the line it stands on."""

    line: int
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt with the text that should follow it, and the line it stands on."""

    line: int
    prompt: str
    completion: str


Example = Chat | Completion


class Mistakes:
    """Collects what is wrong in one file, and raises it as one error."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: list[str] = []

    def add(self, line: int, sentence: str) -> None:
        """Note a mistake; the last one there is room for raises."""
        self._found.append(f"line {line}: {sentence}")
        if len(self._found) == MAX_MISTAKES:
            self.check()

    def check(self) -> None:
        """Raise what was found, if anything was."""
        if self._found:
            more = " (there may be more)" if len(self._found) == MAX_MISTAKES else ""
            raise DataError(f"{self._path.name}{more}: " + "\n".join(self._found))


def read_examples(path: Path) -> Iterator[Example]:
    """The examples of a file, in order.

    Raises:
        DataError: after the last line (or the twentieth mistake) if any line is wrong.
    """
    mistakes, first = Mistakes(path), None
    with _open(path) as stream:
        for line, raw in _lines(stream):
            try:
                example = _example(line, raw)
                first = first or example
                if type(example) is not type(first):
                    raise DataError(
                        f"has {_keys(example)} where line {first.line} has {_keys(first)}. Keep one form per file."
                    )
            except DataError as error:
                mistakes.add(line, str(error))
            else:
                yield example
    mistakes.check()
    if first is None:
        raise DataError(f"{path.name} is empty. Write one example per line.")


def dataset_digest(*paths: Path) -> str:
    """`sha256:HEX` of the files' bytes: of one file its own digest, of several that of their digests in order."""
    digests = []
    for path in paths:
        with _open(path) as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    whole = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return f"sha256:{whole}"


def _open(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path} can not be read ({error.strerror}). Name a JSONL file.") from error


def _lines(stream: BufferedReader) -> Iterator[tuple[int, bytes]]:
    line = 0
    while raw := stream.readline(MAX_LINE + 1):
        line += 1
        if len(raw) > MAX_LINE:
            raise DataError(f"line {line} is longer than {MAX_LINE >> 20} MiB. Write one example per line.")
        if raw.strip() or raw.startswith(BOMS):
            yield line, raw


def _example(line: int, raw: bytes) -> Example:
    value = _json(line, raw)
    if not isinstance(value, dict):
        raise DataError("is not an object. Write {…} on every line.")
    if "messages" in value:
        _no_others(value, {"messages"}, "")
        return Chat(line, _messages(value["messages"]))
    if "prompt" in value or "completion" in value:
        _no_others(value, {"prompt", "completion"}, "")
        return Completion(line, _text(value, "prompt", ""), _text(value, "completion", ""))
    raise DataError("has neither 'messages' nor 'prompt' and 'completion'. Write one of the two forms.")


def _json(line: int, raw: bytes) -> Any:
    if raw.startswith(BOMS):
        raise DataError("begins with a byte-order mark. Save the file as UTF-8 without BOM.")
    if line == 1 and raw.lstrip().startswith(b"["):
        raise DataError("begins a JSON array. Write JSON Lines: one object per line, without brackets around.")
    try:
        return json.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 (byte {error.start}). Save the file as UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"is not one whole JSON object ({error}). Write one on every line.") from error


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError("messages must be a list of at least one message.")
    messages = tuple(_message(item, f"messages[{index}]") for index, item in enumerate(value))
    if any(message.role == "system" for message in messages[1:]):
        raise DataError("messages: only the first message may have the role 'system'.")
    if not any(message.role == "assistant" for message in messages):
        raise DataError("messages has no message of the role 'assistant', so there is nothing to learn.")
    if messages[-1].role != "assistant":
        raise DataError(f"messages must end with the assistant's turn, not with the role '{messages[-1].role}'.")
    if next(message.role for message in messages if message.role != "system") != "user":
        raise DataError("messages must begin with the user's turn, after an optional system message.")
    if not any(message.role == "assistant" and message.trained for message in messages):
        raise DataError("messages: every assistant's turn has weight 0, so there is nothing to learn.")
    return messages


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise DataError(f"{where} is not an object with role and content.")
    role = value.get("role")
    if role not in ROLES:
        raise DataError(f"{where}.role is {json.dumps(role)}; write one of {', '.join(ROLES)}.")
    _no_others(value, {"role", "content"} | ({"weight"} if role == "assistant" else set()), f"{where}.")
    weight = value.get("weight", 1)
    if weight not in (0, 1) or isinstance(weight, bool):
        raise DataError(f"{where}.weight must be 0 (not trained) or 1.")
    return Message(cast(Role, role), _text(value, "content", f"{where}."), trained=weight == 1)


def _text(value: dict[str, Any], key: str, where: str) -> str:
    text = value.get(key)
    if key not in value:
        raise DataError(f"{where}{key} is missing. Add it.")
    if not isinstance(text, str):
        raise DataError(f"{where}{key} must be text, not {type(text).__name__}.")
    if not text.strip():
        raise DataError(f"{where}{key} is empty. Write some text, or leave the example out.")
    if not text.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DataError(f"{where}{key} holds half a surrogate pair (\\ud800 to \\udfff). Write the whole character.")
    return text


def _no_others(value: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(value) - known)
    if unknown:
        raise DataError(f"{where}{unknown[0]} is an unknown key; known are {', '.join(sorted(known))}.")


def _keys(example: Example) -> str:
    return "'messages'" if isinstance(example, Chat) else "'prompt' and 'completion'"
