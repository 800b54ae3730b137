"""One attempt at a run as a detached Ray actor, which outlives the process that started it.

    Attempt (actor, named after the job)    one name exists once in a cluster; holds what was told until it was heard
      └─ Ray Train run of one worker        `work`; dies with the actor, and the actor learns when it dies

The worker's tellings go to the actor, a leader polls the actor, and a later leader polls it just as well.
"""

import os
import threading
import time
from collections import deque
from typing import Any

import ray
import ray.train
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from swapmeet_training.attempts.log import add_last_words, said
from swapmeet_training.attempts.scratch import RAY
from swapmeet_training.attempts.telling import Answer, Failed, Last, Order, Stepped, Telling, namespace
from swapmeet_training.attempts.worker import SCRATCH, own_fault, work
from swapmeet_training.errors import RunFailed, WorkerLost
from swapmeet_training.foreign import as_ours

IDLE_SECONDS = 300.0
"""How long an attempt that is over waits for somebody to ask how it ended; what it made is in the storage."""
SEND_SECONDS = 0.2
MOST_AT_ONCE = 500
"""So many tellings at most are in one answer."""
RAY_TRAIN = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # 2 s by default, paid at every start, report and end
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less per run
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
"""What Ray Train's controllers and workers read from their environment."""


class Attempt:
    """What is told of one attempt, from its start until somebody heard of its end."""

    def __init__(self, order: Order) -> None:
        # not in the actor's environment: it would need a process of its own
        for name, value in {**RAY_TRAIN, "RAY_CHDIR_TO_TRIAL_DIR": "0"}.items():
            os.environ.setdefault(name, value)
        self._order = order
        self._lock = threading.Lock()
        self._told: deque[tuple[int, Telling]] = deque()
        self._number = 0
        self._over = self._stop = False
        self._polled = time.monotonic()
        threading.Thread(target=self._run, name="attempt", daemon=True).start()

    def tell(self, attempt: int, told: list[Telling]) -> bool:
        """Take what the worker tells; says whether it is to stop.

        Raises:
            WorkerLost: the worker is of another attempt, which was given up.
        """
        if attempt != self._order.attempt:
            raise WorkerLost(f"Attempt {attempt} of {self._order.job} was given up. Nothing more of it counts.")
        with self._lock:
            for each in told:
                self._take(each)
            return self._stop

    def poll(self, heard: int) -> Answer:
        """What was told after number `heard`; up to there it is forgotten."""
        with self._lock:
            self._polled = time.monotonic()
            while self._told and self._told[0][0] <= heard:
                self._told.popleft()
            told = tuple(self._told)[:MOST_AT_ONCE]
            return Answer(self._order.attempt, told)

    def park(self) -> None:
        """Have the worker save a checkpoint at its next step, and end."""
        self._stop = True

    def _take(self, telling: Telling) -> None:
        """Number what was told; nothing comes after the last word."""
        if self._over:
            return
        self._number += 1
        self._told.append((self._number, telling))
        self._over = isinstance(telling, Last)

    def _run(self) -> None:
        try:
            _trainer(self._order).fit()
            error: Exception = RunFailed(f"{self._order.adapter}: its worker ended without a word.")
        except Exception as raised:
            error = raised
        failure = _failure(self._order, error)
        if not self._over:  # the worker did not come to say how it ended, nor to keep its log
            add_last_words(self._order, str(error), said(failure))
        with self._lock:
            self._take(failure)
        while time.monotonic() - self._polled < IDLE_SECONDS:
            time.sleep(1)
        os._exit(0)  # only the main thread could end the actor in Ray's way, and it is Ray's


def _failure(order: Order, error: Exception) -> Failed:
    """What ended the Ray Train run, where the worker said nothing: nearly always its death."""
    if isinstance(error, ray.train.WorkerGroupError):
        error = WorkerLost(f"{order.adapter}: its worker process died. Was it out of memory?")
    ours = as_ours(order.adapter, error)
    return Failed(ours.code, str(ours), own=own_fault(ours))


def _trainer(order: Order) -> DataParallelTrainer:
    """A run of one worker on the actor's own node.

    Ray Train's TorchTrainer is this class and a process group, which one worker does not need; without it neither the
    actor nor Ray Train's controller has to load torch.
    """
    share = {"CPU": order.resources.cpus}
    share |= {"GPU": order.resources.gpus} if order.resources.gpus else {}
    share |= {"memory": order.memory} if order.memory else {}
    return DataParallelTrainer(
        _work,
        train_loop_config={"order": order},
        scaling_config=ray.train.ScalingConfig(  # type: ignore[call-arg]  # typed as v1
            num_workers=1,
            use_gpu=order.resources.gpus > 0,
            resources_per_worker=share,
            label_selector={"ray.io/node-id": order.node},
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]
            name=f"{order.job}-{order.attempt}",
            storage_path=str(order.home / SCRATCH / RAY),
            failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=0),  # type: ignore[call-arg]
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )


def _work(config: dict[str, Any]) -> None:
    """In the worker process."""
    import torch

    order: Order = config["order"]
    torch.set_num_threads(order.resources.threads)
    line = Line(order)
    try:
        work(order, line.say, line.asked_to_stop)
    finally:
        line.close()


class Line:
    """From a worker to its attempt's actor: in order, in a thread of its own, so that training waits for nothing."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._actor = ray.get_actor(order.job, namespace(order.storage))
        self._waiting: list[Telling] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop = False
        self._closing = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._send, name="line", daemon=True)
        self._thread.start()

    def say(self, telling: Telling) -> None:
        """Tell.

        Raises:
            WorkerLost: the actor is gone, or is that of a later attempt: nobody wants this one any more.
        """
        self._check()
        with self._lock:
            self._waiting.append(telling)
        if not isinstance(telling, Stepped):
            self._wake.set()

    def asked_to_stop(self) -> bool:
        """Whether the run is to be parked."""
        self._check()
        return self._stop

    def close(self) -> None:
        """Wait until all is told."""
        self._closing = True
        self._wake.set()
        self._thread.join()
        self._check()

    def _check(self) -> None:
        if self._error is not None:
            raise WorkerLost(f"Attempt {self._order.attempt} of {self._order.job} was given up.") from self._error

    def _send(self) -> None:
        closing = False
        while not closing:
            closing = self._closing
            with self._lock:
                told = self._waiting
                self._waiting = []
            try:
                self._stop = bool(ray.get(self._actor.tell.remote(self._order.attempt, told)))
            except Exception as error:
                self._error = error
                return
            if not closing:
                self._wake.wait(SEND_SECONDS)
                self._wake.clear()
