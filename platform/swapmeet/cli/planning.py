"""`swapmeet plan`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swapmeet.cli.here import Run, run_here, sweep_here
from swapmeet.cli.options import Json, show, tell
from swapmeet.cli.run_options import RunOptions, server_of, takes_run_options
from swapmeet.cli.tables import table as columns
from swapmeet.settings import load_settings
from swapmeet_training.errors import SpecError, TrainingError
from swapmeet_training.plan import Placement, fitting, named, own_hardware, planned_job, this_machine

if TYPE_CHECKING:
    from swapmeet.sweeps.request import Sweep

if TYPE_CHECKING:
    from swapmeet.sweeps.request import Sweep


@takes_run_options
def plan(
    options: RunOptions,
    gpu: Annotated[str | None, typer.Option(help="A GPU to plan for, such as H100; this machine otherwise.")] = None,
    memory: Annotated[float | None, typer.Option(help="Memory of the GPU or machine, in GB.")] = None,
    price: Annotated[float | None, typer.Option(help="Price of a GPU for an hour.")] = None,
    speed: Annotated[float | None, typer.Option(help="Tokens a second that such a run was measured at.")] = None,
    json: Json = False,
) -> None:
    """Tell what `train` with the same arguments would need: a run, or all of a sweep. Runs nothing."""
    given = {"gpu": gpu, "memory": memory, "price": price, "speed": speed}
    if server_of(options):
        if own := [f"--{name}" for name, value in given.items() if value is not None]:
            raise typer.BadParameter(
                "a server plans for its own machines. Add --local, or leave it out.", param_hint=own
            )
        base, made = _asked(options)
    else:
        base, made = _made(options, gpu, memory, price or 0.0, speed)
    show({"base": base} | made, sweep_table(base, made) if "runs" in made else table(base, made), json)


def _asked(options: RunOptions) -> tuple[str, dict[str, Any]]:
    """The server's plan, for which the files are uploaded, and deleted again."""
    from swapmeet.cli.job_request import wanted
    from swapmeet.cli.submission import connected, uploaded

    job = wanted(options)
    with connected(options, job) as client, uploaded(client, job, keep=False) as body:
        path = "/v1/fine_tuning/sweeps/plan" if job.sweep else "/v1/fine_tuning/plan"
        return job.request.model, client.call("POST", path, body)


def _made(
    options: RunOptions, gpu: str | None, memory: float | None, price: float, speed: float | None
) -> tuple[str, dict[str, Any]]:
    """A plan for this machine, or for the GPU that is named."""
    _require_positive(memory=memory, price=price, speed=speed)
    if found := sweep_here(options):
        sweep, runs = found
        return runs[0].base, _all_of(sweep, runs, lambda run: _plan(run, options, gpu, memory, price, speed))
    run = run_here(options)
    return run.base, _plan(run, options, gpu, memory, price, speed)


def _all_of(sweep: "Sweep", runs: Sequence[Run], plan: Callable[[Run], dict[str, Any]]) -> dict[str, Any]:
    from swapmeet.sweeps.totals import Unplanned, plan_all

    def plan_one(place: int) -> dict[str, Any] | Unplanned:
        try:
            return plan(runs[place])
        except TrainingError as error:
            return Unplanned(error.code, str(error))

    return plan_all(sweep.configurations, [run.settings for run in runs], plan_one)


def _plan(
    run: Run, options: RunOptions, gpu: str | None, memory: float | None, price: float, speed: float | None
) -> dict[str, Any]:
    resources = run.resources
    hardware = replace(named(gpu) if gpu else own_hardware(resources.gpus, resources.cpus), price=price)
    if memory:
        hardware = replace(hardware, memory=int(memory * 1e9))
    nodes = [] if gpu or memory else [this_machine()]
    settings = {name: value for name, value in run.settings.items() if name not in ("data", "validation")}
    data, held_out = run.settings["data"], run.settings.get("validation")
    planned = planned_job(_folder(run.base, options), settings, data, held_out, hardware)
    if run.parent:
        planned = planned.having(parent=Path(run.parent))
    made = fitting(planned, nodes, resources.gpus or 1.0)
    return (made.at_speed(speed) if speed else made).as_dict()


def table(base: str, plan: dict[str, Any]) -> str:
    """A plan for people, from `Plan.as_dict`."""
    settings, memory, hardware = plan["settings"], plan["memory"], plan["hardware"]
    error = plan["token_error"]
    tokens = f"{plan['tokens']:,}" + (f" (within {100 * error:.1f} %)" if error else "")
    rows = [
        ("base", f"{base} ({plan['architecture']}, {plan['parameters'] / 1e6:,.0f} M parameters)"),
        ("adapter", f"{plan['adapter_parameters'] / 1e6:,.1f} M parameters, rank {settings['rank']}"),
        ("data", f"{plan['examples']:,} examples of {tokens} tokens"),
        ("steps", f"{plan['steps']:,} of {settings['batch_size']} x {settings['gradient_accumulation']}"),
        ("tokens", f"{plan['trained_tokens']:,}, {plan['padded_tokens']:,} with padding"),
        ("memory", f"{_gb(memory['peak'])} of {_gb(hardware['memory'])} ({hardware['name']})"),
        *((f"  {part}", _gb(size)) for part, size in memory["parts"].items() if size),
        ("", f"the most in the {memory['moment']}"),
        ("time", f"{_time(plan['seconds'])}, {plan['speed']}"),
    ]
    if plan["share"]:
        rows.append(("share", f"{100 * plan['share']:.0f} % of a GPU"))
    if plan["price"]:
        rows.append(("cost", f"{plan['cost']:,.2f} at {plan['price']:g} an hour"))
    if plan["placement"]:
        rows.append(("place", str(Placement(**plan["placement"]))))
    return "\n".join([*(f"{name:14}{value}" for name, value in rows), *plan["words"]])


def sweep_table(base: str, plan: dict[str, Any]) -> str:
    """The plan of a sweep for people, from `swapmeet.sweeps.totals.plan_all`: a line for each run, and the sum."""
    runs, priced = plan["runs"], bool(plan["price"])
    options = list(dict.fromkeys(name for run in runs for name in run["configuration"]))
    figures = ("steps", "tokens", "memory", "time", *(("cost",) if priced else ()))
    rows = [
        (run["number"], *(run["configuration"].get(name) for name in options), *_figures(run, len(figures), priced))
        for run in runs
    ]
    refused = sum(run["error"] is not None for run in runs)
    together = [
        ("base", base),
        ("runs", f"{len(runs) - refused:,}" + (f"; {refused} can not be run as they are" if refused else "")),
        ("steps", f"{plan['steps']:,}"),
        ("tokens", f"{plan['trained_tokens']:,}"),
        ("memory", f"{_gb(plan['memory']['peak'])} at most, of {_gb(plan['hardware']['memory'])}"),
        ("time", f"{_time(plan['seconds'])} on {plan['hardware']['name']}, one after the other"),
        *((("cost", f"{plan['cost']:,.2f} at {plan['price']:g} an hour"),) if priced else ()),
    ]
    lines = (f"{name:14}{value}" for name, value in together)
    return "\n".join([columns(("run", *options, *figures), rows), "", *lines, *plan["words"]])


def _figures(run: dict[str, Any], count: int, priced: bool) -> tuple[str, ...]:
    if run["error"]:
        return (run["error"]["message"], *[""] * (count - 1))
    found = (f"{run['steps']:,}", f"{run['trained_tokens']:,}", _gb(run["memory"]["peak"]), _time(run["seconds"]))
    return (*found, f"{run['cost']:,.2f}") if priced else found


def _folder(base: str, options: RunOptions) -> Path:
    """The base's folder: a known base's, any with a config.json, or that of one that can be fetched."""
    from swapmeet_registry.bases import BaseLibrary

    library = BaseLibrary(load_settings(home=options.home, registry=options.registry).folder, tell)
    known = {record.name: Path(record.path) for record in library.records()}
    folder = known.get(base, Path(base).expanduser())
    return folder.resolve() if (folder / "config.json").is_file() else library.find(base).path


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
