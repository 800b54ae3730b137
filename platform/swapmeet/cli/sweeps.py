"""`swapmeet sweeps list|show|events|cancel`: what was tried on a running server, and which is the best."""

import itertools
import json as json_
import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from swapmeet.cli.jobs import Follow, event_line
from swapmeet.cli.options import Json, show, tell
from swapmeet.cli.remote import connect
from swapmeet.cli.tables import duration, fields, moment, plain, table
from swapmeet.following import PAGE, sweep_path

app = typer.Typer(help="Sweeps of a running server: many configurations, the best kept.", no_args_is_help=True)

SweepId = Annotated[str, typer.Argument(help="The sweep's id, ftsweep-…")]
MARK = "*"
"""Before the best."""


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, help="How many at most, newest first.")] = 20,
    after: Annotated[str | None, typer.Option(help="Go on behind the sweep of this id.")] = None,
    json: Json = False,
) -> None:
    """Your sweeps, newest first."""
    query = {"limit": min(limit, PAGE), "after": after}
    with connect() as client:
        sweeps = list(itertools.islice(client.listed("/v1/fine_tuning/sweeps", query), limit))
    headings = ("id", "status", "done", "model", "result", "created")
    rows = [
        (each["id"], each["status"], _done(each), each["model"], each["fine_tuned_model"], moment(each["created_at"]))
        for each in sweeps
    ]
    show({"sweeps": sweeps}, table(headings, rows), json)


@app.command("show")
def show_(sweep: SweepId, json: Json = False) -> None:
    """A sweep: where it stands, and what each configuration measured, the best first."""
    with connect() as client:
        found = client.sweep(sweep)
    show(found, f"{_described(found)}\n\n{runs_table(found)}", json)


@app.command()
def events(
    sweep: SweepId,
    limit: Annotated[int, typer.Option(min=1, help="How many of the newest.")] = 20,
    follow: Follow = False,
    json: Json = False,
) -> None:
    """What happened to a sweep's jobs, oldest first, with the numbers of their configurations."""
    with connect() as client:
        if follow:
            for found in client.sweep_events(sweep, tell):
                if "status" not in found:
                    print(json_.dumps(found) if json else event_line(found), flush=True)
                elif found["status"] != "succeeded":
                    raise typer.Exit(1)
            return
        listed = client.listed(sweep_path(sweep, "events"), {"limit": min(limit, PAGE)})
        newest = list(itertools.islice(listed, limit))[::-1]
    show({"events": newest}, "\n".join(map(event_line, newest)), json)


@app.command()
def cancel(sweep: SweepId, json: Json = False) -> None:
    """End a sweep and all its jobs; nothing is published, and their checkpoints stay."""
    with connect() as client:
        found = client.cancel_sweep(sweep)
    show(found, f"{plain(found['id'])} is {found['status']}", json)


def runs_table(sweep: Mapping[str, Any]) -> str:
    """A sweep's configurations and what they measured; the best first, and marked."""
    runs, metric = sweep["runs"], sweep["metric"]
    options = list(dict.fromkeys(name for run in runs for name in run["configuration"]))
    measured = list(dict.fromkeys([metric, *(name for run in runs for name in run["metrics"])]))
    sign = -1 if metric == "valid_accuracy" else 1
    unmeasured = float("inf")
    ordered = sorted(runs, key=lambda run: (not run["best"], sign * run["metrics"].get(metric, sign * unmeasured)))
    rows = [
        (
            MARK if run["best"] else "",
            run["number"],
            *(_value(run["configuration"].get(name)) for name in options),
            *(_figure(run["metrics"].get(name)) for name in measured),
            str(run["status"]).replace("_", " "),
            _step(run),
            run["job"],
        )
        for run in ordered
    ]
    return table(("", "run", *options, *measured, "status", "step", "job"), rows)


def _described(sweep: Mapping[str, Any]) -> str:
    finish, tried, combinations = sweep["estimated_finish"], len(sweep["runs"]), sweep["combinations"]
    left = f" (in about {duration(finish - time.time())})" if finish and finish > time.time() else ""
    drawn = f", drawn from {combinations:,}" if combinations > tried else ""
    return fields(
        [
            ("id", sweep["id"]),
            ("status", sweep["status"]),
            ("done", f"{_done(sweep)}{drawn}"),
            ("estimated finish", moment(finish) + left),
            ("error", (sweep["error"] or {}).get("message")),
            ("metric", sweep["metric"]),
            ("model", sweep["model"]),
            ("adapter", sweep["adapter"]),
            ("result", sweep["fine_tuned_model"]),
            ("best", sweep["best"]),
            ("trained tokens", sweep["trained_tokens"]),
            ("created", moment(sweep["created_at"])),
            ("finished", moment(sweep["finished_at"])),
        ]
    )


def _done(sweep: Mapping[str, Any]) -> str:
    ended = sum(sweep["counts"].get(status, 0) for status in ("succeeded", "failed", "cancelled"))
    return f"{ended} of {len(sweep['runs'])}"


def _step(run: Mapping[str, Any]) -> str:
    return f"{run['step']} of {run['total_steps']}" if run["total_steps"] else ""


def _value(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json_.dumps(value)


def _figure(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"
