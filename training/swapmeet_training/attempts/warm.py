"""The warm process of a machine: it has imported what runs need, and whoever connects gets a fork of it.

It knows no GPUs: CUDA does not come along into a fork, so what needs one starts anew.

It is as it was after its imports for good: it reads no file, takes no order and holds no data of anybody, and each fork
serves one caller and ends. What it holds are pages that its forks share, so a run in a fork takes no more, warm process
included, than one that made the imports itself.
"""

import fcntl
import gc
import importlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from swapmeet_training.attempts.apart import LOCK, SOCKET, opened, serve

MODULES = (
    "swapmeet_training.attempts.training",
    "swapmeet_training.loop.trainer",
    "swapmeet_training.loop.preference",
    "accelerate",
    "peft",
    "safetensors.torch",
    "transformers.integrations.bitsandbytes",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.quantizers.quantizer_bnb_4bit",
    "transformers.tokenization_utils_tokenizers",
)
"""What a run imports sooner or later, whatever its base."""
PROGRAM = "from swapmeet_training.attempts.warm import main; main()"
LOOKS, PAUSE = 1.0, 60.0
"""Seconds between two looks whether it is there, and until another is started."""
STANDS_BY = 1.0
"""Seconds between two looks whether another of the same home is gone."""
LOG = "warm.log"


def keep_warm(home: Path, stop: threading.Event, *modules: str) -> None:
    """Have a warm process until told to stop; `apart` waits until it has made its imports.

    Args:
        home: the platform's folder. Of several that share it on a machine, one serves and the others stand by.
        stop: when to end.
        modules: to import besides what runs need.
    """
    for folder in (home / "cache", home / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
    while not stop.is_set():
        with (home / "logs" / LOG).open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - fixed words
                [sys.executable, "-c", PROGRAM, str(home), *modules],
                env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},  # bitsandbytes takes memory of all that it sees
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        while process.poll() is None and not stop.wait(LOOKS):
            pass
        process.kill()  # it holds nothing; its forks end with their callers
        process.communicate()
        stop.wait(PAUSE)


def main() -> None:
    """Import, listen and fork until the process that started this one ends, whose pipe is the standard input."""
    folder = Path(sys.argv[1]) / "cache"
    with (folder / LOCK).open("w") as lock:
        while not _locked(lock.fileno()):
            if select.select([0], [], [], STANDS_BY)[0]:
                return
        _prepare(*sys.argv[2:])
        _fork_for_callers(_listener(folder), lock.fileno())


def _locked(number: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _prepare(*modules: str) -> None:
    """Make the imports, and compute nothing: threads do not come along into a fork."""
    for module in (*MODULES, *modules):
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # collections in forks leave these pages shared


def _listener(folder: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with opened(folder) as short:
        with suppress(FileNotFoundError):  # of one that was killed
            os.unlink(short + SOCKET)
        before = os.umask(0o177)
        listener.bind(short + SOCKET)
        os.umask(before)
    listener.listen(16)
    return listener


def _fork_for_callers(listener: socket.socket, lock: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for forks
    waited_for: list[Any] = [0, listener]
    while 0 not in select.select(waited_for, [], [])[0]:
        caller, _ = listener.accept()
        with caller:
            if _user(caller) != os.getuid():
                continue
            if (number := os.fork()) == 0:
                listener.close()
                os.close(lock)  # it would be held as long as the fork lives
                _serve(caller)
            connection: Connection[Any, Any] = Connection(os.dup(caller.fileno()))
            with suppress(OSError), connection:  # the fork says nothing before it was asked
                connection.send(number)


def _user(caller: socket.socket) -> int:
    size = struct.calcsize("3i")
    return int(struct.unpack("3i", caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[1])


def _serve(caller: socket.socket) -> None:
    """In the fork: what is the warm process's own is given up, but its imports."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    serve(caller.detach())
