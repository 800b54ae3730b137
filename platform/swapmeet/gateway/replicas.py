"""The engine replicas as the gateway sees them: calls that go to them through Ray Serve, and come back as chunks."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import grpc  # type: ignore[import-untyped]
import ray
from fastapi.concurrency import run_in_threadpool
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from swapmeet_serving import Call, Chunk
from swapmeet_serving.board import Board
from swapmeet_serving.errors import EngineDead, Overloaded
from swapmeet_serving.inbox import Inbox, Stream
from swapmeet_serving.metrics import Snapshot

SCALING = ("HEALTHY", "UPSCALING", "DOWNSCALING")
"""Ray's states of a deployment that gets replicas as it needs them."""
ATTEMPTS = 2
"""How often a call is sent when the replica it was sent to dies before it gave anything."""
PLAIN: dict[str, Any] = {"request_serialization": "pickle", "response_serialization": "pickle"}
"""Calls and errors are of importable classes: Ray need not look whether their code must be sent along."""
LATE_SECONDS = 5.0
"""How much later than the end of a call its last tokens may come."""


@contextmanager
def _replica_errors() -> Iterator[None]:
    """Map what Ray raises on the way to a replica to errors of ours; the replica's own pass."""
    try:
        yield
    except (RayActorError, grpc.RpcError, ConnectionError) as error:
        raise _Gone("The engine that was answering is gone. Ask again.") from error
    except BackPressureError as error:
        raise Overloaded("All engines are busy, and as many requests wait as may. Try again later.") from error
    except DeploymentUnavailableError as error:
        raise EngineDead("No engine could be started. The server's log says why.") from error


class _Gone(EngineDead):
    """The replica's process ended, and the call with it."""


class ServeReplicas:
    """Engine replicas behind a Ray Serve handle.

    A call whose replica dies before anything was answered is sent once more, to another; after that its caller, who
    has read a part of another answer, is told.
    """

    def __init__(
        self, handle: DeploymentHandle[Any], board: DeploymentHandle[Board], here: Callable[[], Snapshot]
    ) -> None:
        self.handle = handle
        self._board = board
        self._here = here
        self._inbox = Inbox(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        self._following: set[asyncio.Task[None]] = set()  # the loop itself would forget them

    async def generate(self, call: Call) -> AsyncGenerator[Chunk, None]:
        """Stream a call's answers; leaving early cancels them in the replica."""
        for attempt in range(1, ATTEMPTS + 1):
            begun = False
            try:
                with _replica_errors():
                    async with aclosing(self._stream(call)) as chunks:
                        async for chunk in chunks:
                            begun = True
                            yield chunk
                return
            except _Gone:
                if begun or attempt == ATTEMPTS:
                    raise

    async def _stream(self, call: Call) -> AsyncGenerator[Chunk, None]:
        """One attempt: the chunks come to the inbox, and Ray tells how the call ended."""
        left = call.n
        async with self._inbox.stream() as stream:
            response: Any = self.handle.options(stream=True, **PLAIN).send.remote(call, stream.address)
            following = asyncio.create_task(_follow(response, stream))
            self._following.add(following)
            following.add_done_callback(self._following.discard)
            try:
                while left:
                    for chunk in await stream.take():
                        yield chunk
                        left -= chunk.finish_reason is not None
            finally:
                if left:
                    await _cancel(response, following)

    async def answer(self, call: Call) -> tuple[Chunk, ...]:
        """The whole answers, each as one chunk; leaving early cancels them in the replica."""
        for attempt in range(1, ATTEMPTS + 1):
            response: Any = self.handle.options(**PLAIN).answer.remote(call)
            try:
                with _replica_errors():
                    whole: tuple[Chunk, ...] = await response
                return whole
            except asyncio.CancelledError:
                response.cancel()
                raise
            except _Gone:
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def describe(self) -> dict[str, Any]:
        """Ask one replica what it holds."""
        with _replica_errors():
            description = await self.handle.describe.remote()
        return dict(description)

    async def measurements(self) -> list[Snapshot]:
        """What stands on the board, and what this gateway measured up to now."""
        posted: list[Snapshot] = await self._board.read.remote()
        here = self._here()
        return [here, *(each for each in posted if (each.role, each.id) != (here.role, here.id))]

    async def close(self) -> None:
        """Let go of Ray before it ends: handles report to it, and would start another."""
        for each in (self.handle, self._board):
            await each.shutdown_async()  # type: ignore[no-untyped-call]
        self._inbox.close()

    async def state(self) -> str:
        """`ready`, or `asleep` where the first call starts a replica; asks Ray Serve, so that it wakes nobody.

        Raises:
            EngineDead: no replica runs, and none is to come.
        """
        status: Any = await run_in_threadpool(serve.status)
        deployment = status.applications[self.handle.app_name].deployments[self.handle.deployment_name]
        if deployment.replica_states.get("RUNNING"):
            return "ready"
        if deployment.status in SCALING:
            return "asleep"
        raise EngineDead(f"No engine runs ({deployment.status.value}): {deployment.message}")


async def _follow(response: Any, stream: Stream) -> None:
    """Tell a stream when its call failed; if it ended well, what it sent is here or about to come."""
    try:
        async for _ in response:
            pass
    except Exception as error:
        stream.fail(error)
    except asyncio.CancelledError:  # by Ray, which ends; or by `_cancel`, when nobody reads the stream any more
        stream.fail(_Gone("The call was cancelled on its way to the engine. Ask again."))
        raise
    else:
        lost = _Gone("A part of the answer was lost on its way from the engine. Ask again.")
        asyncio.get_running_loop().call_later(LATE_SECONDS, stream.fail, lost)


async def _cancel(response: Any, following: asyncio.Task[None]) -> None:
    """End a call, wherever it is."""
    following.cancel()
    # Ray forgets to cancel what a replica has just accepted, unless it is being read.
    reading = asyncio.ensure_future(response.__anext__())
    await asyncio.sleep(0)
    response.cancel()
    await asyncio.gather(following, reading, return_exceptions=True)
