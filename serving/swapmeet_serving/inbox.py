"""Where a gateway takes in the pieces of answers, straight from the replicas that make them.

Ray Serve carries the call: it chooses the replica, counts the call, cancels it, and says how it ended. A message of
Ray's for each token would cost more than the token, so those come here, over one connection from each replica.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hmac import compare_digest
from itertools import count
from typing import cast

from swapmeet_serving.calls import Chunk, join
from swapmeet_serving.chunk_frames import Unpacker

SECRET_BYTES = 32
GREETING_SECONDS = 5.0
"""How long a connection may take to say the secret: who does not know it must not fill the list of open files."""
log = logging.getLogger("swapmeet.inbox")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a call's pieces go: a gateway's inbox, the secret that opens it, and the number of the stream there."""

    host: str
    port: int
    secret: bytes = field(repr=False)
    stream: int = 0


class Stream:
    """One call's pieces, as they come to `address`."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._pieces: list[Chunk] = []
        self._error: Exception | None = None
        self._news = asyncio.Event()

    def put(self, piece: Chunk) -> None:
        """Another piece."""
        self._pieces.append(piece)
        self._news.set()

    def fail(self, error: Exception) -> None:
        """Nothing comes any more."""
        self._error = error
        self._news.set()

    async def take(self) -> list[Chunk]:
        """All that came since the last time, at least one piece; who is slow gets few pieces, and long ones.

        Raises:
            Exception: what the stream failed with, after the pieces before.
        """
        while not self._pieces:
            if self._error:
                raise self._error
            self._news.clear()
            await self._news.wait()
        pieces, self._pieces = self._pieces, []
        if len(pieces) == 1:
            return pieces
        answers: dict[int, list[Chunk]] = {}
        for piece in pieces:
            answers.setdefault(piece.index, []).append(piece)
        return [join(each) for each in answers.values()]


class Inbox:
    """Listens on a free port of `host` from the first stream on; for one event loop."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._numbers = count()
        self._streams: dict[int, Stream] = {}
        self._lines: set[asyncio.BaseTransport] = set()
        self._opening = asyncio.Lock()
        self._server: asyncio.Server | None = None

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[Stream]:
        """A stream within the block; what comes for it later is thrown away."""
        port, number = await self._port(), next(self._numbers)
        stream = self._streams[number] = Stream(Address(self._host, port, self._secret, number))
        try:
            yield stream
        finally:
            del self._streams[number]

    def close(self) -> None:
        """Listen no more, and hang up."""
        if self._server:
            self._server.close()
        for line in self._lines:
            line.close()

    async def _port(self) -> int:
        if self._server is None:
            async with self._opening:
                if self._server is None:
                    loop = asyncio.get_running_loop()
                    self._server = await loop.create_server(lambda: _Line(self), self._host, 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def opens(self, secret: bytes) -> bool:
        """Whether it is this inbox's."""
        return compare_digest(secret, self._secret)

    def came(self, line: asyncio.BaseTransport) -> None:
        """A connection was made."""
        self._lines.add(line)

    def went(self, line: asyncio.BaseTransport) -> None:
        """A connection ended."""
        self._lines.discard(line)

    def put(self, stream: int, piece: Chunk) -> None:
        """A piece for a stream, if anybody waits for it."""
        if found := self._streams.get(stream):
            found.put(piece)


class _Line(asyncio.Protocol):
    """A connection to the inbox: the secret, and then pieces."""

    _transport: asyncio.Transport

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._unpacker = Unpacker()
        self._greeting: bytes | None = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are of no such class
        self._deadline = asyncio.get_running_loop().call_later(GREETING_SECONDS, transport.close)
        self._inbox.came(transport)

    def data_received(self, data: bytes) -> None:
        if self._greeting is not None:
            self._greeting += data
            if len(self._greeting) < SECRET_BYTES:
                return
            secret, data = self._greeting[:SECRET_BYTES], self._greeting[SECRET_BYTES:]
            if not self._inbox.opens(secret):
                log.warning("someone without the secret called the inbox")
                self._transport.abort()
                return
            self._greeting = None
            self._deadline.cancel()
        try:
            for stream, piece in self._unpacker.feed(data):
                self._inbox.put(stream, piece)
        except ValueError as error:
            log.warning("hung up on a replica: %s", error)
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the signature is Python's
        self._deadline.cancel()
        self._inbox.went(self._transport)
