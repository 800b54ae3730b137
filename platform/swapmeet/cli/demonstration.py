"""`swapmeet demo`."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from swapmeet.cli.options import Home, Json, load_settings


def demo(
    home: Home = None,
    port: Annotated[int | None, typer.Option(help="Port for the demo's server.")] = None,
    json: Json = False,
) -> None:
    """Train three tenants' adapters, publish them, and serve all three from one NF4 base."""
    from swapmeet.demo.story import run_demo

    settings = load_settings(home=home, port=port, base="smollm2-135m", ray_address="")
    # a registry and a database of this machine's own, whatever else is configured
    settings = settings.model_copy(update={"registry": "", "database": ""})
    with tempfile.TemporaryDirectory(prefix="swapmeet-demo-") as scratch:
        run_demo(settings, Path(scratch), quietly=json)


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(demo)
