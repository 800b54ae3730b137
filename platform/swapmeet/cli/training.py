"""`swapmeet train`."""

import typer

from swapmeet.cli.options import Json, show, tell
from swapmeet.cli.run_options import RunOptions, takes_run_options
from swapmeet.settings import load_settings


@takes_run_options
def train(options: RunOptions, json: Json = False) -> None:
    """Fine-tune a base with QLoRA and publish the adapter."""
    from swapmeet.training import train_and_publish

    if options.name is None:
        raise typer.BadParameter("Name the adapter: --name TENANT/NAME.", param_hint="--name")
    settings = load_settings(home=options.home, registry=options.registry)
    follow = tell if options.follow else lambda _: None
    published = train_and_publish(
        settings, options.base, options.settings(), options.resources(), options.alias, follow
    )
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
