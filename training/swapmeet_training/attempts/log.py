"""What an attempt leaves to read: lines in the storage, kept while it runs, so that whatever kills it leaves them.

They are in pieces of a thousand lines, `runs/JOB/ATTEMPT/log/000001.txt` and so on, of which only the last one is ever
written again.
"""

import contextlib
import json
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Self

from swapmeet_registry.errors import StoreError
from swapmeet_registry.stores import Store, open_store
from swapmeet_training.attempts.run_storage import RunStorage
from swapmeet_training.attempts.telling import (
    Began,
    Failed,
    Finished,
    Noted,
    Order,
    Ready,
    Saved,
    Stepped,
    Stopped,
    Telling,
)

LINES = 1000
"""Of one piece."""
LONGEST = 4000
"""Characters of a line that are kept."""
KEEP_SECONDS = 3.0
SECRETS = ("SECRET", "TOKEN", "PASSWORD", "API_KEY", "ACCESS_KEY", "CREDENTIAL")
"""What names of variables hold whose values no log shows."""
SHORTEST_SECRET = 6
PACKAGES = ("swapmeet", "torch", "transformers", "peft", "bitsandbytes", "ray")


class AttemptLog:
    """The log of one attempt. As a context it is kept every few seconds, in a thread of its own.

    While the storage is away, lines wait; what matters of them is told as events, too.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._lines: list[str] = []
        self._kept = 0
        self._lock, self._keeping = threading.Lock(), threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="log", daemon=True)

    def write(self, text: str) -> None:
        """Add a text of one or more lines, with the time; secrets of this process's environment are left out."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        lines = [f"{moment} {_plain(line)}"[:LONGEST] for line in without_secrets(text).split("\n")]
        with self._lock:
            self._lines += lines

    def keep(self) -> None:
        """Bring what is new into the storage."""
        with self._keeping, contextlib.suppress(StoreError):
            with self._lock:
                lines = self._lines[self._kept - self._kept % LINES :]
                first, new = self._kept // LINES, len(self._lines) > self._kept
            if new:
                self._put(first, lines)

    def go_on(self) -> None:
        """Begin behind what is in the storage, which a worker that died has left.

        Raises:
            StoreError: the storage is away.
        """
        self._lines = list(log_lines(open_store(self._order.storage), self._order.job, self._order.attempt))
        self._kept = len(self._lines)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.keep()

    def _serve(self) -> None:
        while not self._stop.wait(KEEP_SECONDS):
            self.keep()

    def _put(self, first: int, lines: list[str]) -> None:
        runs = RunStorage(open_store(self._order.storage), self._order.job)
        for start in range(0, len(lines), LINES):
            piece = lines[start : start + LINES]
            number = first + start // LINES
            runs.put(_key(self._order.job, self._order.attempt, number), "\n".join([*piece, ""]).encode())
            self._kept = number * LINES + len(piece)


def add_last_words(order: Order, *texts: str) -> None:
    """Add to the log of a worker that died what is known of its end."""
    log = AttemptLog(order)
    with contextlib.suppress(StoreError):
        log.go_on()
        for text in texts:
            log.write(text)
        log.keep()


def log_lines(store: Store, job: str, attempt: int, skip: int = 0, pieces: int | None = None) -> Iterator[str]:
    """The lines of an attempt's log as far as it is kept, but the first `skip`.

    Args:
        store: the storage.
        job: the job's id.
        attempt: its number.
        skip: how many lines to leave out.
        pieces: how many there are, where that is known.

    Raises:
        StoreError: the storage can not be read.
    """
    for number in range(skip // LINES, _pieces(store, job, attempt) if pieces is None else pieces):
        stored = store.get(_key(job, attempt, number))
        lines = stored.data.decode(errors="replace").split("\n")[:-1] if stored else []
        yield from lines[max(skip - number * LINES, 0) :]


def log_length(store: Store, job: str, attempt: int) -> int:
    """How many lines an attempt's log has.

    Raises:
        StoreError: the storage can not be read.
    """
    whole = max(_pieces(store, job, attempt) - 1, 0) * LINES
    return whole + sum(1 for _ in log_lines(store, job, attempt, whole))


def beginning(order: Order) -> str:
    """What an attempt is: its run, its machine and the versions that it runs with."""
    settings = {name: value for name, value in order.settings.items() if name != "chat_template"}
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return "\n".join(
        [
            f"attempt {order.attempt} of {order.job}: {order.adapter} on {order.base}"
            + (f", from {order.parent}" if order.parent else ""),
            f"settings: {json.dumps(settings, default=str)}",
            f"on {platform.node()}, device {order.resources.device}, {order.resources.threads} threads",
            f"python {platform.python_version()}, {packages}",
        ]
    )


def said(telling: Telling) -> str:
    """What was told, for people."""
    match telling:
        case Began(checkpoint):
            return f"goes on from {checkpoint}" if checkpoint else "begins at step 0"
        case Ready(moments):
            started = min(moments.values())
            return "first step done: " + ", ".join(f"{part} {at - started:.1f} s" for part, at in moments.items())
        case Stepped(progress):
            return str(progress)
        case Saved(checkpoint, metrics, best):
            return f"saved {checkpoint}; {_figures(metrics)}; the best is {best or 'not known'}"
        case Noted(_, message, level):
            return f"{level}: {message}"
        case Stopped(checkpoint):
            return f"stopped as it was asked to, to go on from {checkpoint}"
        case Failed(code, message, own):
            return f"failed ({code}, {'for good' if own else 'may be tried again'}): {message}"
        case Finished():
            peak = f", at most {telling.peak_memory} bytes on the device" if telling.peak_memory else ""
            figures = _figures(telling.metrics)
            return f"finished after {telling.steps} steps, {telling.trained_tokens} tokens{peak}; {figures}"


def without_secrets(text: str) -> str:
    """A text in which the names of variables stand for their secret values."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST_SECRET and any(word in name.upper() for word in SECRETS):
            text = text.replace(value, f"[{name}]")
    return text


def _figures(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _plain(line: str) -> str:
    """Without what would move a terminal's cursor or begin a new line: it may come from anybody's data."""
    return "".join(each if each.isprintable() else " " for each in line)


def _pieces(store: Store, job: str, attempt: int) -> int:
    prefix = _key(job, attempt, 0).rpartition("/")[0] + "/"
    return sum(1 for _ in store.list(prefix))


def _key(job: str, attempt: int, number: int) -> str:
    return f"runs/{job}/{attempt}/log/{number + 1:06d}.txt"
