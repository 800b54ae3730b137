"""`swapmeet plan`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from swapmeet.cli.options import Json, show, tell
from swapmeet.cli.run_options import RunOptions, takes_run_options
from swapmeet.settings import load_settings
from swapmeet_training.errors import SpecError
from swapmeet_training.plan import Plan, named, own_hardware, plan_job, this_machine


@takes_run_options
def plan(
    options: RunOptions,
    gpu: Annotated[str | None, typer.Option(help="A GPU to plan for, such as H100; this machine otherwise.")] = None,
    memory: Annotated[float | None, typer.Option(help="Memory of the GPU or machine, in GB.")] = None,
    price: Annotated[float, typer.Option(help="Price of a GPU for an hour.")] = 0.0,
    speed: Annotated[float | None, typer.Option(help="Tokens a second that such a run was measured at.")] = None,
    json: Json = False,
) -> None:
    """Tell what `train` with the same arguments would need. Runs nothing."""
    _require_positive(memory=memory, price=price, speed=speed)
    resources = options.resources()
    hardware = replace(named(gpu) if gpu else own_hardware(resources.gpus, resources.cpus), price=price)
    if memory:
        hardware = replace(hardware, memory=int(memory * 1e9))
    nodes = [] if gpu or memory else [this_machine()]
    base = _folder(options)
    made = plan_job(
        base,
        {name: value for name, value in options.settings().items() if name not in ("data", "validation")},
        options.data,
        options.validation,
        nodes,
        hardware,
        resources.gpus or 1.0,
    )
    if speed:
        made = made.at_speed(speed)
    show({"base": options.base, **made.as_dict()}, table(options.base, made), json)


def table(base: str, plan: Plan) -> str:
    """A plan for people."""
    tokens = f"{plan.tokens:,}" + (f" (within {100 * plan.token_error:.1f} %)" if plan.token_error else "")
    rows = [
        ("base", f"{base} ({plan.architecture}, {plan.parameters / 1e6:,.0f} M parameters)"),
        ("adapter", f"{plan.adapter_parameters / 1e6:,.1f} M parameters, rank {plan.settings.rank}"),
        ("data", f"{plan.examples:,} examples of {tokens} tokens"),
        ("steps", f"{plan.steps:,} of {plan.settings.batch_size} x {plan.settings.gradient_accumulation}"),
        ("tokens", f"{plan.trained_tokens:,}, {plan.padded_tokens:,} with padding"),
        ("memory", f"{_gb(plan.memory.peak)} of {_gb(plan.hardware.memory)} ({plan.hardware.name})"),
        *((f"  {part}", _gb(size)) for part, size in plan.memory.parts.items() if size),
        ("", f"the most in the {plan.memory.moment}"),
        ("time", f"{_time(plan.seconds)}, {'measured' if plan.hardware.measured else 'estimated'}"),
    ]
    if plan.share:
        rows.append(("share", f"{100 * plan.share:.0f} % of a GPU"))
    if plan.hardware.price:
        rows.append(("cost", f"{plan.cost:,.2f} at {plan.hardware.price:g} an hour"))
    if plan.placement:
        rows.append(("place", str(plan.placement)))
    return "\n".join([*(f"{name:14}{value}" for name, value in rows), *plan.words])


def _folder(options: RunOptions) -> Path:
    """The base's folder: a known base's, any with a config.json, or that of one that can be fetched."""
    from swapmeet_registry.bases import BaseLibrary

    library = BaseLibrary(load_settings(home=options.home, registry=options.registry).folder, tell)
    known = {record.name: Path(record.path) for record in library.records()}
    folder = known.get(options.base, Path(options.base).expanduser())
    return folder.resolve() if (folder / "config.json").is_file() else library.find(options.base).path


def _require_positive(**figures: float | None) -> None:
    wrong = [f"{name} is {value} but should be positive." for name, value in figures.items() if value and value < 0]
    if wrong:
        raise SpecError(" ".join(wrong))


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(plan)
