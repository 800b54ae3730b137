"""Pieces of answers as bytes, on their way from a replica to a gateway.

In MessagePack, which unlike a pickle can name no code to run. Each message is a piece with the number of the stream
that it belongs to.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import msgpack

from swapmeet_serving.calls import Chunk, Stages, ToolCall
from swapmeet_serving.request import Candidate, TokenLogprob

LARGEST_FRAME = 256 << 20
"""Bytes; an echoed prompt's log-probabilities are the most that one message holds."""


def pack(stream: int, piece: Chunk) -> bytes:
    """One message."""
    packed: bytes = msgpack.packb((stream, piece), default=_fields)
    return packed


class Unpacker:
    """Reads messages out of a stream of bytes."""

    def __init__(self) -> None:
        self._unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=LARGEST_FRAME)

    def feed(self, data: bytes) -> Iterator[tuple[int, Chunk]]:
        """The streams and pieces that are complete with these bytes.

        Raises:
            ValueError: the bytes are no such messages.
        """
        try:
            self._unpacker.feed(data)
            for stream, fields in self._unpacker:
                yield stream, _chunk(*fields)
        except (TypeError, ValueError, msgpack.exceptions.UnpackException) as error:
            raise ValueError(f"These bytes are no pieces of answers: {error}") from error


def _fields(each: Any) -> tuple[Any, ...]:
    """A dataclass's values in their order; MessagePack knows no dataclasses."""
    return tuple(getattr(each, name) for name in each.__slots__)


def _chunk(*fields: Any) -> Chunk:
    flat = Chunk(*fields)
    if not (flat.tool_calls or flat.logprobs or flat.stages):
        return flat
    (text, token_ids, finish_reason, prompt, completion, calls, cached, logprobs, index, stages) = fields
    return Chunk(
        text,
        token_ids,
        finish_reason,
        prompt,
        completion,
        tool_calls=tuple(ToolCall(*each) for each in calls),
        cached_tokens=cached,
        logprobs=tuple(_logprobs(logprobs)),
        index=index,
        stages=Stages(*stages) if stages else None,
    )


def _logprobs(entries: Iterable[Any]) -> Iterator[TokenLogprob]:
    for chosen, top, shown in entries:
        yield TokenLogprob(Candidate(*chosen), tuple(Candidate(*each) for each in top), shown)
