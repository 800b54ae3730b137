"""What a job would need, before it is one: planned in a process of its own, because it reads and tokenises its data."""

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from swapmeet.database.tables import JobRow
from swapmeet.errors import RequestRefused
from swapmeet.files import Files
from swapmeet.settings import Settings
from swapmeet_registry import RegistryError
from swapmeet_registry.bases import BaseLibrary
from swapmeet_training import TrainingError

PROGRAM = "from swapmeet.fine_tuning.planning import main; main()"
SECONDS = 300.0
"""The longest that planning may take."""


def plan_request(row: JobRow, files: Files, settings: Settings) -> dict[str, Any]:
    """The plan of a job that is not recorded, on this machine, as `Plan.as_dict` has it.

    Args:
        row: as `JobRequests.row` made it, its files checked.
        files: where its data are.
        settings: the server's.

    Raises:
        RequestRefused: a file is still being checked, or the job can not run; with the code of what keeps it.
    """
    if "epochs" not in row.settings:
        raise RequestRefused(f"{row.training_file} is still being checked. Ask again shortly.", "training_file")
    base = BaseLibrary(settings.folder).find(row.base)
    with tempfile.TemporaryDirectory(dir=_spool(settings)) as folder:
        question = {
            "base": str(base.path),
            "settings": {name: value for name, value in row.settings.items() if value is not None},
            "data": str(files.fetch(row.training_file, Path(folder))),
            "validation": str(files.fetch(row.validation_file, Path(folder))) if row.validation_file else None,
            "resources": row.resources,
            "price": settings.gpu_price,
        }
        answer = _ask(question)
    if "code" in answer:
        raise RequestRefused(answer["message"], None, answer["code"])
    return dict(answer["plan"])


def _ask(question: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-c", PROGRAM]
    try:
        done = subprocess.run(command, input=json.dumps(question), capture_output=True, text=True, timeout=SECONDS)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise RequestRefused(f"Planning took over {SECONDS:.0f} s. Plan with a part of the file.") from None
    if done.returncode:
        raise RequestRefused(f"Planning failed (exit {done.returncode}). Submit the job without, or a smaller file.")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _spool(settings: Settings) -> Path:
    folder = settings.folder / "cache" / "plans"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main() -> None:
    """Answer the question on standard input, as JSON."""
    from swapmeet_training.plan import own_hardware, plan_job, this_machine

    asked = json.load(sys.stdin)
    given = asked["resources"]
    gpus, cpus = float(given.get("gpus", 0)), float(given.get("cpus", 1))
    paths = [Path(asked[name]) if asked[name] else None for name in ("base", "data", "validation")]
    base, data, validation = paths
    assert base is not None
    assert data is not None
    try:
        hardware = replace(own_hardware(gpus, cpus), price=asked["price"])
        if memory := given.get("memory"):
            hardware = replace(hardware, memory=int(memory))
        plan = plan_job(base, asked["settings"], data, validation, [this_machine()], hardware, gpus or 1.0)
        answer: dict[str, Any] = {"plan": plan.as_dict()}
    except (TrainingError, RegistryError) as error:
        answer = {"code": error.code, "message": str(error)}
    print(json.dumps(answer))
