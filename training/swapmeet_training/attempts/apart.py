"""A function in a process of its own, and the line to it; forked from this machine's warm process if there is one.

    process = apart(home, function, argument)        there: function(line, argument), then the process ends
    process.receive(), process.send(...)             there: line.say(...), line.told

Either way the process is new and does one thing. A fork has the imports of the warm process already, which take longer
than all else at the start of a run, and shares their memory with it. It ends when its caller does, or hangs up.
"""

import fcntl
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

SOCKET = "warm.sock"
"""In the home's cache: whoever connects has a fork of the warm process at the other end."""
LOCK = "warm.lock"
"""Beside it: held by the warm process, also while it makes its imports."""
IMPORTS = 60.0
"""Seconds that whoever comes meanwhile waits for these: a Python that starts anew would make them a second time."""
ANSWERS = 10.0
"""Seconds within which a fork must say its first word; else there is something wrong with the warm process."""
PROGRAM = "import sys; from swapmeet_training.attempts.apart import serve; serve(int(sys.argv[1]))"


@dataclass(frozen=True, slots=True)
class Raised:
    """The last word of a function that raised."""

    error: str


class Line:
    """The function's end of the line; whatever thread may speak."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self.told = threading.Event()
        """Set once the caller sent anything."""

    def say(self, what: Any) -> None:
        """Send something to the caller."""
        with self._lock:
            self._connection.send(what)

    def listen(self) -> None:
        """Until the caller hangs up: this process ends with it, whatever it is at."""
        while True:
            try:
                self._connection.recv()
            except (EOFError, OSError):
                os._exit(1)
            self.told.set()


class Process:
    """The caller's end of the line to process number `number`; as a context, it is closed at the end."""

    def __init__(
        self, connection: "Connection[Any, Any]", number: int, started: "subprocess.Popen[bytes] | None" = None
    ) -> None:
        self._connection, self._started = connection, started
        self._lock = threading.Lock()
        self._handle: int | None = None
        with suppress(ProcessLookupError):  # it has ended already, as `receive` will say
            self._handle = os.pidfd_open(number)

    def send(self, what: Any) -> None:
        """Send something; does nothing where the process has ended."""
        with suppress(OSError):
            self._connection.send(what)

    def receive(self, seconds: float | None = None) -> Any:
        """The next thing that it says.

        Raises:
            EOFError: it has ended.
            TimeoutError: it said nothing for so long.
        """
        try:
            if not self._connection.poll(seconds):
                raise TimeoutError
            return self._connection.recv()
        except (ConnectionError, pickle.UnpicklingError) as error:  # killed in the middle of a word
            raise EOFError from error

    def kill(self) -> None:
        """End it at once; for any thread, and as often as wanted."""
        with self._lock, suppress(ProcessLookupError):
            if self._handle is not None:
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def close(self) -> None:
        """End it, and hang up."""
        self.kill()
        with self._lock:
            if self._handle is not None:
                os.close(self._handle)
                self._handle = None
        self._connection.close()
        if self._started is not None:
            self._started.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def apart(home: Path, function: Callable[..., object], *arguments: object, fork: bool = True) -> Process:
    """Call `function(line, *arguments)` in a process of its own, with this process's environment and niceness.

    Args:
        home: the platform's folder, which tells the warm process.
        function: found by its name there.
        arguments: that can be pickled.
        fork: False starts Python anew in any case, as whatever uses a GPU must.
    """
    process = (_forked(home) if fork else None) or _fresh()
    process.send((dict(os.environ), os.nice(0), function, arguments))
    return process


def _forked(home: Path) -> Process | None:
    """A fork of the warm process; None where there is none, or it does not answer."""
    with suppress(OSError, EOFError), opened(home / "cache") as folder:
        connection: Connection[Any, Any] = Connection(_line_to_warm(folder).detach())
        if connection.poll(ANSWERS):
            return Process(connection, connection.recv())
        connection.close()
    return None


def _line_to_warm(folder: str) -> socket.socket:
    """Once it has made its imports.

    Raises:
        OSError: there is none.
    """
    until = time.monotonic() + IMPORTS
    while True:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            line.connect(folder + SOCKET)
            return line
        except OSError:
            line.close()
            if time.monotonic() > until or not _held(folder + LOCK):
                raise
        time.sleep(0.05)


def _held(path: str) -> bool:
    with open(path, "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _fresh() -> Process:
    """A new Python."""
    here, there = socket.socketpair()
    with there:
        command = [sys.executable, "-c", PROGRAM, str(there.fileno())]
        started = subprocess.Popen(  # noqa: S603 - fixed words
            command, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
        )
    connection: Connection[Any, Any] = Connection(here.detach())
    return Process(connection, started.pid, started)


@contextmanager
def opened(folder: Path) -> Iterator[str]:
    """A short way to a folder within the block, with a slash at its end: paths of sockets have at most 107 bytes."""
    number = os.open(folder, os.O_DIRECTORY | os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{number}/"
    finally:
        os.close(number)


def serve(number: int) -> None:
    """Be the process at the other end of file descriptor `number`, and end."""
    status = 1
    try:
        connection: Connection[Any, Any] = Connection(number)
        environment, niceness, function, arguments = connection.recv()
        os.environ.clear()
        os.environ.update(environment)
        os.nice(max(niceness - os.nice(0), 0))  # Ray's processes, engines too, stand behind the server's
        line = Line(connection)
        threading.Thread(target=line.listen, name="line", daemon=True).start()
        try:
            function(line, *arguments)
            status = 0
        except Exception as error:
            line.say(Raised(f"{type(error).__name__}: {error}"))
    except (EOFError, OSError):  # nobody wants it any more
        pass
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
