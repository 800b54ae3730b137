"""A replica's connections to the gateways that ask it, one for each, over which the pieces of answers go."""

import asyncio
import logging
from collections.abc import Callable
from typing import cast

from swapmeet_serving.calls import Chunk
from swapmeet_serving.chunk_frames import pack
from swapmeet_serving.errors import EngineDead
from swapmeet_serving.inbox import Address

CONNECT_SECONDS = 5.0
log = logging.getLogger("swapmeet.outbox")


class Line(asyncio.Protocol):
    """A connection to a gateway; `ended` is called when it is no more."""

    _transport: asyncio.Transport

    def __init__(self, secret: bytes, ended: Callable[[], object]) -> None:
        self._secret = secret
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._waiting: list[bytes] = []
        self._lost = False
        self._room = asyncio.Event()
        self._room.set()

    def send(self, stream: int, piece: Chunk) -> None:
        """Send a piece, together with all others of this turn of the event loop."""
        packed = pack(stream, piece)
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(packed)

    async def sent(self) -> None:
        """Return when the system has all that was sent.

        Raises:
            ConnectionResetError: the gateway does not get it any more.
        """
        self._flush()
        await asyncio.sleep(0)  # some loops write at the end of a turn
        await self.room()

    async def room(self) -> None:
        """Return when the gateway keeps up.

        Raises:
            ConnectionResetError: it is gone.
        """
        await self._room.wait()
        if self._lost:
            raise ConnectionResetError("The gateway that asked hung up.")

    def _flush(self) -> None:
        if self._waiting and not self._lost:
            self._transport.write(b"".join(self._waiting))
            self._waiting = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected: the secret opens the inbox."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are of no such class
        self._transport.set_write_buffer_limits(0)  # so that room means that nothing is left here
        self._transport.write(self._secret)

    def pause_writing(self) -> None:
        """The gateway reads slower than this writes."""
        self._room.clear()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the signature is Python's
        """It is gone."""
        self._lost = True
        self._room.set()
        self._ended()


class Outbox:
    """The lines; for one event loop."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, int, bytes], asyncio.Future[Line]] = {}

    async def line(self, to: Address) -> Line:
        """The line to a gateway, made if there is none.

        Raises:
            EngineDead: it can not be reached.
        """
        place = to.host, to.port, to.secret
        if place not in self._lines:
            self._lines[place] = asyncio.ensure_future(self._connect(to))
        return await asyncio.shield(self._lines[place])

    async def _connect(self, to: Address) -> Line:
        def ended() -> None:
            self._lines.pop((to.host, to.port, to.secret), None)

        try:
            async with asyncio.timeout(CONNECT_SECONDS):  # a TimeoutError is an OSError
                _, line = await asyncio.get_running_loop().create_connection(
                    lambda: Line(to.secret, ended), to.host, to.port
                )
        except OSError as error:
            ended()  # here, because whoever asked may have left
            log.warning("the gateway at %s:%s can not be reached from here: %s", to.host, to.port, error)
            raise EngineDead(
                f"The engine can not reach the gateway at {to.host}:{to.port} ({error or 'no answer'}). "
                "Let the machines of the cluster reach each other on all ports."
            ) from error
        return line
