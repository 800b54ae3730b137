"""Push folders in processes of their own, each of which may be killed (SIGKILL) at any of its steps.

They are forked from one that has imported everything, so that each starts in a fraction of a second.
"""

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from swapmeet_registry import Fingerprint, Registry, fault

BASE = Fingerprint(name="tiny", weights="sha256:" + "a" * 64, tokenizer="sha256:" + "b" * 64)
FORKING = multiprocessing.get_context("forkserver")
# Not huggingface_hub, which reads the environment of each process when it is imported.
FORKING.set_forkserver_preload(["pytest", "boto3", "numpy", "swapmeet_registry", "swapmeet_registry.stores.s3"])


class Publisher:
    """Pushes a folder as a name's next version and as its `prod`, in this environment.

    Args:
        url: of the registry.
        folder: to push.
        name: of the adapter.
        kill_at: the step at which it is killed, counted from 1; 0 is none.
    """

    def __init__(self, url: str, folder: Path, name: str, kill_at: int = 0) -> None:
        self._told, theirs = FORKING.Pipe(duplex=False)
        told = dict(os.environ), url, folder, name, kill_at, theirs
        self._process = FORKING.Process(target=_push, args=told, daemon=True)
        self._process.start()
        theirs.close()

    def wait(self, seconds: float = 120) -> tuple[int, list[str]]:
        """The version's number and every step, once it has ended; 0 and none if it was killed as it was told to."""
        with self._told:
            assert self._told.poll(seconds), "it said nothing"
            try:
                found: tuple[int, list[str]] = self._told.recv()
            except EOFError:
                found = 0, []
        self._process.join(seconds)
        assert self._process.exitcode == (0 if found[0] else -signal.SIGKILL)
        self._process.close()
        return found


def _push(
    environment: dict[str, str], url: str, folder: Path, name: str, kill_at: int, told: "Connection[Any, Any]"
) -> None:
    os.environ.clear()
    os.environ |= environment
    steps: list[str] = []

    def reached(step: str) -> None:
        steps.append(step)
        if len(steps) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    fault.hook = reached
    if url.startswith("s3:"):
        from swapmeet_registry.stores import s3

        s3.LARGEST_PUT = 2000  # the weights go up in parts
    version = Registry(url).push(folder, name, base=BASE, alias="prod")
    told.send((version.version, steps))
