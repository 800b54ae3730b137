"""A network link in front of a server on loopback: so many bits a second in each direction, and so long a way."""

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

PIECE = 64 << 10
AHEAD = 32
"""Pieces on their way in one connection, as TCP's windows would have them."""


@dataclass
class Direction:
    """One direction of the link, which all connections share.

    Attributes:
        rate: bytes a second.
        delay: seconds from one end to the other.
        free_at: when the last piece that was sent has left.
    """

    rate: float
    delay: float
    free_at: float = 0.0

    def arrives(self, now: float, size: int) -> float:
        """When a piece that is sent now is at the other end."""
        self.free_at = max(now, self.free_at) + size / self.rate
        return self.free_at + self.delay


@contextmanager
def link(port: int, megabits: float, delay: float) -> Iterator[int]:
    """The port of a relay to a port of this machine, in a process of its own."""
    ours, theirs = multiprocessing.Pipe()
    relay = multiprocessing.get_context("spawn").Process(
        target=_run, args=(theirs, port, megabits * 1e6 / 8, delay), daemon=True
    )
    relay.start()
    try:
        yield ours.recv()
    finally:
        relay.terminate()
        relay.join()


def _run(told: Connection, port: int, rate: float, delay: float) -> None:
    asyncio.run(_serve(told, port, Direction(rate, delay), Direction(rate, delay)))


async def _serve(told: Connection, port: int, up: Direction, down: Direction) -> None:
    async def connected(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection("127.0.0.1", port)
        with suppress(ConnectionError):
            await asyncio.gather(_carry(client, to_server, up), _carry(server, to_client, down))

    relay = await asyncio.start_server(connected, "127.0.0.1", 0)
    told.send(relay.sockets[0].getsockname()[1])
    await relay.serve_forever()


async def _carry(source: asyncio.StreamReader, target: asyncio.StreamWriter, direction: Direction) -> None:
    clock = asyncio.get_running_loop().time
    on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(AHEAD)

    async def deliver() -> None:
        while (piece := await on_the_way.get())[1]:
            await asyncio.sleep(piece[0] - clock())
            target.write(piece[1])
            await target.drain()
        target.close()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(deliver())
        while piece := await source.read(PIECE):
            await on_the_way.put((direction.arrives(clock(), len(piece)), piece))
        await on_the_way.put((0.0, b""))
