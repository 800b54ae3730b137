"""Copy in processes that are killed (SIGKILL) at one step after the other, and say what each left behind.

    python killed_copies.py SOURCE TARGET NAME          SOURCE is a registry's address, or a bundle's file

For each step a target of its own, TARGET-1, TARGET-2 and so on, is filled by a process that is killed there, looked at,
and filled again by one that lives. Prints one line of JSON for each: what was there after the kill, how much the second
one still copied, and what is there in the end. The last one was not killed at all.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from swapmeet_registry import NotFound, Registry, fault
from swapmeet_registry.copies.bundle import import_bundle
from swapmeet_registry.copies.mirror import mirror
from swapmeet_registry.upkeep.fsck import fsck


def copy(source: str, target: str, name: str) -> int:
    """Gives how many versions were new."""
    if "://" in source:
        return mirror(Registry(source).backend, Registry(target).backend, [name]).versions
    return sum(each.new for each in import_bundle(Registry(target), Path(source)))


def state(target: str, name: str) -> dict[str, Any]:
    """What a reader sees, and whether all of it is whole."""
    registry = Registry(target)
    found = fsck(target, True)
    try:
        versions = registry.show(name).versions
        head = registry.head(name).encode().decode()
    except NotFound:
        return {"versions": 0, "sound": found.sound, "signed": False, "head": None}
    there = [each for each in versions if each.deleted is None]
    signed = all(registry.backend.signers(each) for each in there)
    return {"versions": len(versions), "sound": found.sound, "signed": signed, "head": head}


def apart(work: Callable[[], Any], kill_at: int = 0) -> Any:
    """Do something in a process of its own; None if it was killed."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        left = [kill_at]

        def reached(step: str) -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        fault.hook = reached
        with os.fdopen(write, "w") as stream:
            json.dump(work(), stream)
            stream.flush()
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        said = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(f"a process failed with {status}")
    return json.loads(said) if status == 0 else None


def look_and_go_on(source: str, target: str, name: str) -> dict[str, Any]:
    return {"after": state(target, name), "again": copy(source, target, name), "end": state(target, name)}


def main(source: str, target: str, name: str) -> None:
    if target.startswith("s3:"):
        import boto3

        boto3.client("s3")  # what takes long to import is there before the first process
    number = 0
    while True:
        number += 1
        where = (source, f"{target}-{number}", name)
        done = apart(partial(copy, *where), number)
        print(json.dumps({"killed": done is None} | apart(partial(look_and_go_on, *where))), flush=True)
        if done is not None:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
