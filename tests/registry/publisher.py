"""Push a folder in a process of its own.

python publisher.py URL FOLDER NAME           prints the version's number, then every step on a line of its own
python publisher.py URL FOLDER NAME 7         is killed (SIGKILL) when it reaches the seventh step
"""

import os
import signal
import sys
from pathlib import Path

from swapmeet_registry import Fingerprint, Registry, fault

BASE = Fingerprint(name="tiny", weights="sha256:" + "a" * 64, tokenizer="sha256:" + "b" * 64)


def main(url: str, folder: str, name: str, kill_at: int = 0) -> None:
    steps: list[str] = []

    def reached(step: str) -> None:
        steps.append(step)
        if len(steps) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    fault.hook = reached
    if url.startswith("s3:"):
        from swapmeet_registry.stores import s3

        s3.LARGEST_PUT = 2000  # the weights go up in parts
    version = Registry(url).push(Path(folder), name, base=BASE, alias="prod")
    print(version.version, *steps, sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
