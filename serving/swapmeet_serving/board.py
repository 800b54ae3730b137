"""Where the processes of one application put their measurements, so that one scrape shows all of them.

Ray Serve's handles pick a replica at random and can not address each, so replicas are not asked: every process
posts a `Snapshot` every `POST_SECONDS` from a thread of its own, and the board forgets processes it has not heard
of for `EXPIRY_SECONDS`. The board is a deployment of the same application: Serve starts it, restarts it and ends
it with the others, on one machine as on a cluster, and a board that was restarted is full again after one post.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from swapmeet_serving.metrics import Family, Snapshot

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

BOARD = "Board"
POST_SECONDS = 2.0
EXPIRY_SECONDS = 15.0

log = logging.getLogger("swapmeet.metrics")


class Board:
    """The newest snapshot of each process that posted one lately."""

    def __init__(self, expiry: float = EXPIRY_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._expiry = expiry
        self._clock = clock
        self._posted: dict[tuple[str, str], tuple[float, Snapshot]] = {}

    async def post(self, snapshot: Snapshot) -> None:
        """Replace a process's snapshot."""
        self._posted[snapshot.role, snapshot.id] = self._clock(), snapshot

    async def read(self) -> list[Snapshot]:
        """The snapshots that are not too old; the others are forgotten."""
        oldest = self._clock() - self._expiry
        self._posted = {key: each for key, each in self._posted.items() if each[0] >= oldest}
        return [snapshot for _, snapshot in self._posted.values()]


class Poster:
    """Posts a process's families to the board, again and again, until `close`.

    Args:
        measure: gives the families; called on the poster's thread.
        post: takes the snapshot to the board; what it raises is logged, and the next one is tried.
    """

    def __init__(
        self,
        role: Literal["replica", "gateway"],
        identifier: str,
        measure: Callable[[], Sequence[Family]],
        post: Callable[[Snapshot], object],
        every: float = POST_SECONDS,
    ) -> None:
        self._role = role
        self._id = identifier
        self._measure = measure
        self._post = post
        self._every = every
        self._closed = threading.Event()
        threading.Thread(target=self._work, name="metrics", daemon=True).start()

    def snapshot(self) -> Snapshot:
        """What is measured now."""
        return Snapshot(self._role, self._id, tuple(self._measure()))

    def close(self) -> None:
        """Post no more."""
        self._closed.set()

    def _work(self) -> None:
        while True:
            try:
                self._post(self.snapshot())
            except Exception as error:
                log.warning("measurements not posted (%s: %s)", type(error).__name__, error)
            if self._closed.wait(self._every):
                return


def process_id() -> str:
    """The id of the Serve replica that asks, which no other process has had."""
    from ray import serve

    return serve.get_replica_context().replica_id.unique_id


def poster_to(board: "DeploymentHandle[Board]") -> Callable[[Snapshot], object]:
    """Posts to the board from a thread, and waits until it has arrived; to be made on the loop that handles live on."""
    loop = asyncio.get_running_loop()

    async def post(snapshot: Snapshot) -> None:
        await board.post.remote(snapshot)

    return lambda snapshot: asyncio.run_coroutine_threadsafe(post(snapshot), loop).result(EXPIRY_SECONDS)


def build_board() -> "Application":
    """The board as a Ray Serve application, to bind into replicas and gateway."""
    from ray import serve

    board = serve.deployment(name=BOARD, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})(Board)
    application: Application = board.bind()
    return application
