"""One attempt at a run as a detached Ray actor, which outlives the process that started it.

    Attempt (actor, named after the job)    one name exists once in a cluster; holds what was told until it was heard
      ├─ Room (actor)                       holds the CPUs, the share of a GPU and the memory that Ray gives the run
      └─ a process of its own               `train`; ends when the actor or its room does, and the actor learns its end

A leader polls the actor, and a later leader polls it just as well.
"""

import os
import threading
import time
from collections import deque
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from swapmeet_training.attempts.apart import Process, Raised, apart
from swapmeet_training.attempts.log import add_last_words, said
from swapmeet_training.attempts.telling import Answer, Failed, Last, Order, Telling
from swapmeet_training.attempts.training import train
from swapmeet_training.attempts.worker import own_fault
from swapmeet_training.errors import RunFailed, WorkerLost
from swapmeet_training.foreign import as_ours

IDLE_SECONDS = 300.0
"""How long an attempt that is over waits for somebody to ask how it ended; what it made is in the storage."""
MOST_AT_ONCE = 500
"""So many tellings at most are in one answer."""


class Attempt:
    """What is told of one attempt, from its start until somebody heard of its end."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._lock = threading.Lock()
        self._told: deque[tuple[int, Telling]] = deque()
        self._number = 0
        self._over = self._stop = False
        self._process: Process | None = None
        self._polled = time.monotonic()
        threading.Thread(target=self._run, name="attempt", daemon=True).start()

    def poll(self, heard: int) -> Answer:
        """What was told after number `heard`; up to there it is forgotten."""
        with self._lock:
            self._polled = time.monotonic()
            while self._told and self._told[0][0] <= heard:
                self._told.popleft()
            told = tuple(self._told)[:MOST_AT_ONCE]
            return Answer(self._order.attempt, told)

    def park(self) -> None:
        """Have the run save a checkpoint at its next step, and end."""
        with self._lock:
            self._stop = True
            if self._process is not None:
                self._process.send("park")

    def _take(self, telling: Telling) -> None:
        """Number what was told; nothing comes after the last word."""
        with self._lock:
            if self._over:
                return
            self._number += 1
            self._told.append((self._number, telling))
            self._over = isinstance(telling, Last)

    def _run(self) -> None:
        try:
            self._train()
            error: Exception = WorkerLost(f"{self._order.adapter}: its worker process died. Was it out of memory?")
        except Exception as raised:
            error = raised
        failure = _failure(self._order, error)
        if not self._over:  # the process did not come to say how it ended, nor to keep its log
            add_last_words(self._order, str(error), said(failure))
        self._take(failure)
        while time.monotonic() - self._polled < IDLE_SECONDS:
            time.sleep(1)
        os._exit(0)  # only the main thread could end the actor in Ray's way, and it is Ray's

    def _train(self) -> None:
        """Have the run made, and take what it tells, until its process has ended."""
        room = _room(self._order)
        os.environ.update(ray.get(room.environment.remote()))  # waits until there is room
        process = apart(self._order.home, train, self._order, fork=self._order.resources.device == "cpu")
        try:
            threading.Thread(target=_end_with, args=(process, room), name="room", daemon=True).start()
            with self._lock:
                self._process = process
                if self._stop:
                    process.send("park")
            while True:
                told = process.receive()
                if isinstance(told, Raised):
                    raise RunFailed(f"{self._order.adapter} failed: {told.error}")
                self._take(told)
        except EOFError:
            pass
        finally:
            with self._lock:
                self._process = None
            process.close()
            ray.kill(room)


class Room:
    """What Ray gives a run of its node, held as long as this actor lives."""

    def environment(self) -> dict[str, str]:
        """The variables that say which GPUs these are."""
        return {name: value for name, value in os.environ.items() if name.endswith("_VISIBLE_DEVICES")}

    def hold(self) -> None:
        """Never returns."""
        threading.Event().wait()


def _room(order: Order) -> Any:
    return (
        ray.remote(Room)
        .options(
            num_cpus=order.resources.cpus,
            num_gpus=order.resources.gpus,
            memory=order.memory or None,
            max_restarts=0,
            max_concurrency=2,
            scheduling_strategy=NodeAffinitySchedulingStrategy(order.node, soft=False),
        )
        .remote()
    )


def _end_with(process: Process, room: Any) -> None:
    """End the run when its room is gone, as where Ray needs the memory."""
    ray.wait([room.hold.remote()])
    process.kill()


def _failure(order: Order, error: Exception) -> Failed:
    """What ended the attempt, where the run said nothing: nearly always its process's death."""
    if isinstance(error, ray.exceptions.RayError):
        error = WorkerLost(f"{order.adapter}: its room on the machine was lost. Was that out of memory?")
    ours = as_ours(order.adapter, error)
    return Failed(ours.code, str(ours), own=own_fault(ours))
