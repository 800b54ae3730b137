"""Checks one file to train on, in a process of its own.

A million lines take long and hold Python's lock, and a hostile file may take a process down: neither may touch the
one that answers requests.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from swapmeet_training import TrainingError
from swapmeet_training.data.check import check_file

PROGRAM = "from swapmeet.files.validation import main; main()"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a file can be trained on, in words what keeps it from that, and what was counted.

    The report has at least `form` (`chat`, `completion` or `preference`) and `examples`.
    """

    ok: bool
    details: str | None = None
    report: dict[str, Any] = field(default_factory=dict)


class Interrupted(Exception):
    """The check was ended from outside, so the file is still to be checked."""


def validate(path: Path) -> Verdict:
    """Look at every example of a file, in memory that hardly grows with their number."""
    try:
        report = check_file(path)
    except TrainingError as error:
        return Verdict(False, str(error).replace(path.name, "The file", 1))
    details = report.problem and report.problem.replace(path.name, "The file", 1)
    return Verdict(report.ok, details, {**report.as_dict(), "name": None})


def validate_apart(path: Path, started: "list[subprocess.Popen[bytes]]", seconds: float) -> Verdict:
    """`validate` in another process; `started` is given it, so that it can be ended.

    Raises:
        Interrupted: somebody ended it.
    """
    command = [sys.executable, "-c", PROGRAM, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # noqa: S603
    started.append(process)
    try:
        answer, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Verdict(False, f"Checking the file took over {seconds:.0f} s. Split it, and upload the pieces.")
    finally:
        started.remove(process)
    if process.returncode == -signal.SIGTERM:
        raise Interrupted
    if process.returncode:
        return Verdict(
            False, f"Checking the file failed (exit {process.returncode}). Upload it again, or a smaller one."
        )
    return Verdict(**json.loads(answer))


def main() -> None:
    """Write the verdict on the file that the command line names, as JSON; whoever answers requests goes first."""
    os.nice(10)
    sys.stdout.write(json.dumps(asdict(validate(Path(sys.argv[1])))))
