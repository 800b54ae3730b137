"""A run on this machine, as `swapmeet train` and `plan` do without a server."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swapmeet.cli.options import tell
from swapmeet.cli.run_options import OF_THE_QUEUE, RunOptions
from swapmeet.errors import RequestRefused
from swapmeet.settings import load_settings
from swapmeet_registry import NotFound, Registry
from swapmeet_registry.bases import CATALOGUE, BaseLibrary
from swapmeet_training import DataError, Resources, check_file

if TYPE_CHECKING:
    from swapmeet.cli.job_request import Wanted
    from swapmeet.fine_tuning.models import Origin
    from swapmeet.fine_tuning.request import JobRequest
    from swapmeet.sweeps.request import Sweep

ADAPTER = re.compile(r"[a-z0-9][a-z0-9._-]*/[a-z0-9][a-z0-9._-]*(:.*|@sha256:.*)?", re.DOTALL)
"""What may be an adapter's name; a Hub id may, too."""
SHAPE = ("rank", "alpha", "rslora", "dora", "target_modules")


@dataclass(frozen=True, slots=True)
class Run:
    """A base by its name, what it may use, and the settings of `FineTune` but those that follow from the base.

    `name` may be missing among them. `parent` is `TENANT/NAME@sha256:HEX` of the adapter to go on from.
    """

    base: str
    settings: Mapping[str, Any]
    resources: Resources
    parent: str | None = None


def run_here(options: RunOptions) -> Run:
    """What a command line, and its file, ask of this machine.

    Raises:
        RequestRefused, DataError, SpecError: each says what to do.
    """
    if options.file is not None:
        return _of_file(options)
    if queued := [f"--{name}" for name in OF_THE_QUEUE if name in options.said()]:
        raise RequestRefused(f"{', '.join(queued)}: only servers have that. Leave it out, or name one: --url URL.")
    assert options.base is not None
    settings = options.settings()
    origin = _origin(options.base, options)
    asked = {name: settings.get(name) for name in SHAPE} | {"init": settings.get("init", "default")}
    kept = _inherited(asked, origin)
    settings |= {name: value for name, value in kept.items() if value is not None}
    return Run(origin.base, settings, options.resources(), origin.parent)


def sweep_here(options: RunOptions) -> tuple["Sweep", list[Run]] | None:
    """The sweep that a command line's file asks for, if it does, and what each configuration asks of this machine.

    Raises:
        RequestRefused, DataError: each says what to do.
    """
    from swapmeet.cli.job_request import wanted

    job = wanted(options) if options.file is not None else None
    if job is None or job.sweep is None:
        return None
    return job.sweep, [_run(job, request, options) for request in job.sweep.requests]


def _of_file(options: RunOptions) -> Run:
    from swapmeet.cli.job_request import wanted

    job = wanted(options)
    if job.sweep is not None:
        raise RequestRefused(
            f"{options.file}: sweep is for a server, where each configuration is a job. Name one: --url URL. "
            "`swapmeet plan` with the same file tells here what it would need."
        )
    _tell_what_is_left_out(job.fields)
    return _run(job, job.request, options)


def _run(job: "Wanted", request: "JobRequest", options: RunOptions) -> Run:
    from swapmeet.fine_tuning.hyperparameters import resolve, run_settings
    from swapmeet.fine_tuning.models import inherit

    data = job.files["training_file"]
    origin = _origin(_base(request.model, options), options)
    lora = inherit(request.lora.model_dump(mode="json"), origin)
    asked = resolve(request.asked, _examples(data), request.lora.gradient_accumulation)
    settings = run_settings(asked, lora, request.kind, request.seed or 0)
    name = request.lora.name if "/" in (request.lora.name or "") else None  # a server would add the tenant
    settings |= {"name": name, "data": data, "validation": job.files.get("validation_file")}
    resources = request.lora.resources.model_dump(include={"cpus", "gpus"}, exclude_none=True)
    return Run(
        origin.base,
        {name: value for name, value in settings.items() if value is not None},
        Resources(**resources),
        origin.parent,
    )


def _origin(model: str, options: RunOptions) -> "Origin":
    """A base, or the version of an adapter in the registry that is gone on from.

    `OWNER/NAME` may be an adapter's name or the Hub id of a base; it is the adapter where the registry has one.

    Raises:
        RegistryError, RequestRefused: there is no such version, or it can not be trained.
    """
    from swapmeet.fine_tuning.models import Models, Origin

    if not ADAPTER.fullmatch(model) or Path(model).expanduser().is_dir():
        return Origin(model)
    settings = load_settings(home=options.home, registry=options.registry)
    registry = Registry(settings.registry_url)
    if not ("@" in model or ":" in model or _is_there(registry, model)):
        return Origin(model)
    library = BaseLibrary(settings.folder)
    models = Models(registry, lambda: {*CATALOGUE, *(record.name for record in library.records())})
    origin = models.find(model, lambda _: True)
    assert origin.parent is not None
    tell(f"Going on from {registry.resolve(origin.parent)}, {origin.parent}.")
    return origin


def _is_there(registry: Registry, name: str) -> bool:
    try:
        registry.resolve(name)
    except NotFound:
        return False
    return True


def _inherited(asked: Mapping[str, Any], origin: "Origin") -> dict[str, Any]:
    """What follows from a parent; mistakes by the options' names."""
    from swapmeet.fine_tuning.models import inherit

    try:
        return inherit(asked, origin)
    except RequestRefused as error:
        told = str(error).replace("lora.target_modules", "--target").replace("lora.", "--")
        raise RequestRefused(told) from None


def _examples(data: Path) -> int:
    report = check_file(data)
    if report.problem:
        raise DataError(report.problem)
    return report.examples


def _base(model: str, options: RunOptions) -> str:
    """A base's name; a folder that the file names stands where the file is."""
    assert options.file is not None
    folder = options.file.parent / Path(model).expanduser()
    return str(folder) if options.base is None and "/" in model and folder.is_dir() else model


def _tell_what_is_left_out(fields: Mapping[str, Any]) -> None:
    """The same file serves here and there, so what only servers have is no mistake."""
    lora = fields.get("lora") or {}
    found = [name for name in ("metadata", "integrations", "suffix") if fields.get(name)]
    found += [f"lora.{name}" for name in ("priority", "deadline") if lora.get(name)]
    found += ["lora.resources.memory"] if (lora.get("resources") or {}).get("memory") else []
    if found:
        tell(f"Left out, as only servers have it: {', '.join(found)}.")
