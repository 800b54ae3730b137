"""A run in Weights & Biases, through its package, which is imported only here."""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from swapmeet.errors import SinkFailed
from swapmeet.integrations.request import Wandb
from swapmeet.integrations.sink import Point, Run

SETTINGS = {
    "console": "off",
    "silent": True,
    "init_timeout": 30,
    **dict.fromkeys(("disable_git", "disable_code", "disable_job_creation"), True),
    **dict.fromkeys(("x_disable_stats", "x_disable_meta", "x_disable_machine_info"), True),
    "x_save_requirements": False,
    "host": "swapmeet",
}
"""It sends what a job measured, and nothing of the server that runs it: neither load, code, paths nor packages."""


class WandbSink:
    """One run under the job's id, with the operator's key (`WANDB_API_KEY`).

    Args:
        wanted: what the job asked for.
        run: the job.
        folder: where the package keeps what it has not sent yet.

    Raises:
        SinkFailed: the package is not installed, or refuses.
    """

    def __init__(self, wanted: Wandb, run: Run, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._ended = False
        with _errors():
            package: Any = importlib.import_module("wandb")
            self._run = package.init(
                project=wanted.project,
                entity=wanted.entity,
                name=wanted.name or run.job,
                tags=list(wanted.tags),
                id=run.job,
                resume="allow",
                reinit="create_new",  # others' runs in this process stay as they are
                dir=str(folder),
                config={"job": run.job, "model": run.model, "adapter": run.adapter},
                settings=package.Settings(**SETTINGS),
            )

    def log(self, points: Sequence[Point]) -> None:
        """Hand points to the package, which sends them; it drops those of steps that it has had."""
        with _errors():
            for point in points:
                self._run.log({**point.values, "_timestamp": point.at.timestamp()}, step=point.step)

    def end(self, state: str, at: datetime) -> None:  # noqa: ARG002 - it notes its own moment
        """Send what is left; anything but success is an exit code of 1."""
        with _errors():
            self._run.finish(exit_code=0 if state == "succeeded" else 1)
        self._ended = True

    def close(self) -> None:
        """Send what is left of a run that has not ended, which is marked as one that will go on."""
        if not self._ended:
            with _errors():
                self._run.mark_preempting()
                self._run.finish(exit_code=1)


@contextmanager
def _errors() -> Iterator[None]:
    """Map the package's errors to ours; their texts may hold more than a job's owner is to read."""
    try:
        yield
    except ImportError:
        raise SinkFailed("the package wandb is not installed on this server") from None
    except Exception as error:
        raise SinkFailed(f"wandb failed ({type(error).__name__})") from error
