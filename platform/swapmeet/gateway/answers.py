"""OpenAI's response shapes, whole and streamed."""

import codecs
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from swapmeet_serving import Candidate, Chunk, TokenLogprob

LEAST = -9999.0
"""What OpenAI gives as the log-probability of what can not be: JSON has neither minus infinity nor NaN."""


@dataclass(frozen=True, slots=True)
class Head:
    """What all objects of one answer share."""

    id: str
    created: int
    model: str

    def object(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """An answer, or a part of one."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        } | more


class Tally:
    """Counts tokens over the choices of a request, of which each `n` share a prompt that counts once."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._prompts: dict[int, int] = {}
        self._cached: dict[int, int] = {}
        self._completions: dict[int, int] = {}

    def add(self, chunk: Chunk) -> None:
        """Note a piece, which carries its choice's counts so far."""
        prompt = chunk.index // self._n
        self._prompts[prompt] = chunk.prompt_tokens
        self._cached[prompt] = min(chunk.cached_tokens, self._cached.get(prompt, chunk.cached_tokens))
        self._completions[chunk.index] = chunk.completion_tokens

    @property
    def usage(self) -> dict[str, Any]:
        """The counts so far. A prompt's cached tokens are those that none of its choices had to compute."""
        prompt, completion = sum(self._prompts.values()), sum(self._completions.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached.values())},
        }


class ChatShape:
    """Objects of one chat completion."""

    prefix, whole, part = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def opening(self, n: int) -> list[dict[str, Any]]:
        """What a stream begins with: each choice's role."""
        delta = {"role": "assistant", "content": ""}
        return [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None} for index in range(n)]

    def choice(self, answer: Chunk) -> dict[str, Any]:
        """A whole choice."""
        return self._choice(answer, "message", {"role": "assistant", "content": answer.text, "refusal": None})

    def delta(self, piece: Chunk) -> dict[str, Any]:
        """A piece of a choice."""
        return self._choice(piece, "delta", {"content": piece.text} if piece.text else {})

    def _choice(self, chunk: Chunk, name: str, content: dict[str, Any]) -> dict[str, Any]:
        logprobs = None
        if chunk.logprobs:
            logprobs = {"content": [_chat_logprob(each) for each in chunk.logprobs], "refusal": None}
        return {"index": chunk.index, name: content, "logprobs": logprobs, "finish_reason": chunk.finish_reason}


class TextShape:
    """Objects of one plain completion; remembers how far each choice's text has come."""

    prefix, whole, part = "cmpl-", "text_completion", "text_completion"

    def __init__(self) -> None:
        self._places: defaultdict[int, _Place] = defaultdict(_Place)

    def opening(self, n: int) -> list[dict[str, Any]]:  # noqa: ARG002 (chats have one)
        """Nothing but the text is streamed."""
        return []

    def choice(self, chunk: Chunk) -> dict[str, Any]:
        """A whole choice, or a piece of one."""
        logprobs = self._logprobs(chunk) if chunk.logprobs else None
        return {"index": chunk.index, "text": chunk.text, "logprobs": logprobs, "finish_reason": chunk.finish_reason}

    delta = choice

    def _logprobs(self, chunk: Chunk) -> dict[str, Any]:
        place = self._places[chunk.index]
        return {
            "tokens": [_name(each.chosen) for each in chunk.logprobs],
            "token_logprobs": [_value(each.chosen) for each in chunk.logprobs],
            "top_logprobs": [_by_name(each) for each in chunk.logprobs],
            "text_offset": [place.of(each) for each in chunk.logprobs],
        }


Shape = ChatShape | TextShape


class _Place:
    """Where the next token begins in a choice's text, in characters."""

    def __init__(self) -> None:
        self._length = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, token: TokenLogprob) -> int:
        """A token's beginning: for one that goes on with a character, that character's."""
        begin = self._length
        if token.shown:
            self._length += len(self._decoder.decode(token.chosen.piece))
        return begin


def _chat_logprob(token: TokenLogprob) -> dict[str, Any]:
    return _entry(token.chosen) | {"top_logprobs": [_entry(each) for each in token.top]}


def _entry(candidate: Candidate) -> dict[str, Any]:
    return {"token": _name(candidate), "logprob": _value(candidate), "bytes": list(candidate.piece)}


def _by_name(token: TokenLogprob) -> dict[str, float | None] | None:
    """The likeliest tokens and the one that stands there; of two that read alike, the likelier."""
    if token.chosen.logprob is None:
        return None
    found: dict[str, float | None] = {}
    for each in (*token.top, token.chosen):
        found.setdefault(_name(each), _value(each))
    return found


def _name(candidate: Candidate) -> str:
    """A token in text; as OpenAI writes it where its bytes are no whole characters."""
    try:
        return candidate.piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in candidate.piece)


def _value(candidate: Candidate) -> float | None:
    return None if candidate.logprob is None else max(LEAST, candidate.logprob)
