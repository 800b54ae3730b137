"""Renders adapters' own chat templates outside of this process, in time and memory that are bounded.

A template is a program, and a stranger's may loop for ever or fill the memory. So it runs in one of a few processes
that hold no secrets, may write no files, and are killed and replaced when they take too much.
"""

import json
import os
import select
import signal
import sys
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import LifoQueue
from subprocess import PIPE, Popen
from threading import Lock
from typing import Any

from swapmeet_serving import render_worker

WORKERS = 2
"""Processes, so that others' templates pass one that loops."""
START_SECONDS = 60.0
HELD_OFF_SECONDS = 5.0
"""How long whoever's request took too much waits for the next with the same adapter: a flood must not take turns."""
MOST_HELD_OFF = 1024
WIDEST, SPARE_BYTES = 6, 4096
"""Bytes of a character in an answer, at most, and of what stands around the text."""
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "HOME", "LANG", "LC_ALL", "TZ")
"""All that a worker sees of this process's variables, among which there may be secrets."""


class TemplateFailed(Exception):
    """A template gave no prompt; the message goes on after "The chat template ..."."""


class TookTooMuch(TemplateFailed):
    """It was ended, because it took more than it may."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What rendering may take.

    Attributes:
        seconds: CPU time of one template.
        memory: bytes of a whole process, of which Python and transformers have some 80 million.
        patience: seconds by the clock, in case a process does not even compute.
    """

    seconds: float = 1.0
    memory: int = 512 << 20
    patience: float = 10.0


class TemplateRenderer:
    """For any thread; as many templates are rendered at once as there are workers, which start when first needed."""

    def __init__(self, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._workers: LifoQueue[_Worker] = LifoQueue()
        for _ in range(WORKERS):
            self._workers.put(_Worker(limits or Limits()))
        self._held_off: OrderedDict[Hashable, float] = OrderedDict()  # until when
        self._lock = Lock()

    def render(
        self,
        template: str,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        special: Mapping[str, str] | None = None,
        who: Hashable = None,
    ) -> str:
        """The prompt that asks for the next assistant's turn, as `apply_chat_template` gives it.

        Args:
            template: in Jinja.
            messages: the conversation.
            tools: the functions that may be called.
            special: names of special tokens and their texts, which templates may use.
            who: is held off for a while if this takes too much.

        Raises:
            TookTooMuch: more time or memory than there is, now or a moment ago.
            TemplateFailed: it refuses the messages, or gives too long a text.
        """
        asked = {"chat_template": template, "conversations": [messages], "tools": tools, **(special or {})}
        try:
            request = json.dumps(asked).encode() + b"\n"
        except RecursionError as error:
            raise TemplateFailed("refuses these messages: they are nested too deeply") from error
        worker = self._workers.get()
        try:
            self._check(who)
            answer = worker.render(request)
        except TookTooMuch:
            self._hold_off(who)
            raise
        finally:
            self._workers.put(worker)
        if "refusal" in answer:
            raise TemplateFailed(answer["refusal"])
        return str(answer["text"])

    def _check(self, who: Hashable) -> None:
        with self._lock:
            left = self._held_off.get(who, 0.0) - self._clock()
        if left > 0:
            raise TemplateFailed(f"took too much a moment ago. Try again in {left:.0f} s")

    def _hold_off(self, who: Hashable) -> None:
        with self._lock:
            self._held_off[who] = self._clock() + HELD_OFF_SECONDS
            self._held_off.move_to_end(who)
            if len(self._held_off) > MOST_HELD_OFF:
                self._held_off.popitem(last=False)


class _Worker:
    """One process, started when it is needed and ended with this object; for one thread at a time."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: Popen[bytes] | None = None

    def render(self, request: bytes) -> dict[str, Any]:
        """The process's answer.

        Raises:
            TookTooMuch: there is none.
        """
        if self._process:
            try:
                return self._ask(request)
            except _Ended as ended:
                if ended.slow:
                    raise TookTooMuch(ended.reason(self._limits)) from ended
        try:  # perhaps once more, after a process that may have died of what others had left in it
            return self._ask(request)
        except _Ended as ended:
            raise TookTooMuch(ended.reason(self._limits)) from ended

    def _ask(self, request: bytes) -> dict[str, Any]:
        process = self._process or self._start()
        assert process.stdin
        try:
            process.stdin.write(request)
            process.stdin.flush()
            most = WIDEST * render_worker.longest(request) + SPARE_BYTES
            answer: dict[str, Any] = json.loads(_line(process, self._limits.patience, most))
        except (OSError, EOFError) as error:
            raise _Ended(self._end(), late=isinstance(error, TimeoutError)) from error
        return answer

    def _start(self) -> Popen[bytes]:
        limits = str(self._limits.seconds), str(self._limits.memory)
        process = Popen(  # noqa: S603 (nothing in it is anybody's)
            [sys.executable, "-P", render_worker.__file__, *limits],
            stdin=PIPE,
            stdout=PIPE,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is not for it
        )
        self._process, self._finalizer = process, weakref.finalize(self, _end, process)
        try:
            _line(process, START_SECONDS, SPARE_BYTES)
        except (OSError, EOFError) as error:
            raise RuntimeError(f"The process for chat templates did not start (status {self._end()}).") from error
        return process

    def _end(self) -> int:
        self._process = None
        status: int | None = self._finalizer()
        assert status is not None, "a process is ended once"
        return status


class _Ended(Exception):
    """A process ended with this status; had to be, where it was `late`."""

    def __init__(self, status: int, *, late: bool) -> None:
        super().__init__(status)
        self._status = status
        self._late = late

    @property
    def slow(self) -> bool:
        """Whether it took too much time."""
        return self._late or self._status == -signal.SIGPROF

    def reason(self, limits: Limits) -> str:
        """What happened, after "The chat template ..."."""
        if self.slow:
            return f"takes more than {limits.patience if self._late else limits.seconds:g} s to render"
        if self._status == render_worker.OUT_OF_MEMORY:
            return "takes more memory to render than there is for it"
        return "ends the process that renders it"


def _end(process: Popen[bytes]) -> int:
    """End a process, if it has not ended yet; gives its status."""
    process.kill()
    assert process.stdin
    assert process.stdout
    for pipe in (process.stdin, process.stdout):
        with suppress(BrokenPipeError):  # a request that was not taken
            pipe.close()
    return process.wait()


def _line(process: Popen[bytes], seconds: float, most: int) -> bytes:
    """What a process says next.

    Raises:
        TimeoutError: it says nothing for so long.
        EOFError: it ended, or says more than `most` bytes.
    """
    assert process.stdout
    source, deadline, received = process.stdout.fileno(), time.monotonic() + seconds, bytearray()
    poll = select.poll()  # select() knows the first 1024 files only
    poll.register(source, select.POLLIN)
    while not received.endswith(b"\n"):
        if not poll.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
            raise TimeoutError
        piece = os.read(source, 1 << 16)
        received += piece
        if not piece or len(received) > most:
            raise EOFError
    return bytes(received)


def _environment() -> dict[str, str]:
    paths = os.pathsep.join(path for path in map(str, sys.path) if path and Path(path).exists())
    own = {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {name: os.environ[name] for name in ENVIRONMENT if name in os.environ} | own
