"""`swapmeet train`."""

import typer

from swapmeet.cli.here import run_here
from swapmeet.cli.options import Json, show, tell
from swapmeet.cli.run_options import RunOptions, server_of, takes_run_options
from swapmeet.errors import RequestRefused
from swapmeet.settings import load_settings


@takes_run_options
def train(options: RunOptions, json: Json = False) -> None:
    """Fine-tune a base with QLoRA: on the server of SWAPMEET_URL as a job, or here, to publish the adapter.

    A file with a `sweep` is one job for each configuration, on a server, of which the best is published.
    """
    if server_of(options):
        _there(options, json)
    else:
        _here(options, json)


def _there(options: RunOptions, json: bool) -> None:
    from swapmeet.cli.job_request import wanted
    from swapmeet.cli.submission import connected, submit

    job = wanted(options)
    with connected(options, job) as client:
        submit(client, job, options.follow, json)


def _here(options: RunOptions, json: bool) -> None:
    from swapmeet.training import train_and_publish

    if options.file is None and options.name is None:
        raise typer.BadParameter("Name the adapter: --name TENANT/NAME.", param_hint="--name")
    run = run_here(options)
    if "name" not in run.settings:
        raise RequestRefused(f"{options.file}: here, where no server knows the tenant, name it: TENANT/NAME.")
    settings = load_settings(home=options.home, registry=options.registry)
    follow = tell if options.follow else lambda _: None
    published = train_and_publish(settings, run.base, run.settings, run.resources, options.alias, follow, run.parent)
    result = {
        "name": published.version.name,
        "version": published.version.version,
        "digest": published.version.digest,
        "seconds": round(published.seconds, 1),
        "metrics": published.metrics,
    }
    show(result, f"{published.version} {published.version.digest} after {published.seconds:.0f} s", json)


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(train)
