"""The command line: `swapmeet COMMAND`. Exit code 0 done, 1 refused or failed, 2 wrong usage."""

import sys

import typer

from swapmeet.cli import (
    adapters,
    bases,
    compat,
    copies,
    data,
    demonstration,
    diagnosis,
    jobs,
    keys,
    planning,
    provenance,
    search,
    server,
    signing,
    stores,
    sweeps,
    tenants,
    training,
    usage,
    webhooks,
    withdrawal,
)
from swapmeet.errors import PlatformError
from swapmeet_registry import RegistryError
from swapmeet_serving.errors import ServingError
from swapmeet_training.errors import TrainingError

app = typer.Typer(
    name="swapmeet",
    help="Fine-tune, keep and serve LoRA adapters on one shared NF4 base.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for commands in (
    server, training, planning, adapters, search, withdrawal, signing, provenance, compat, diagnosis, demonstration,
    usage,
):  # fmt: skip
    commands.register(app)
app.add_typer(bases.app, name="base")
app.add_typer(data.app, name="data")
app.add_typer(tenants.app, name="tenant")
app.add_typer(keys.app, name="key")
app.add_typer(jobs.app, name="jobs")
app.add_typer(sweeps.app, name="sweeps")
app.add_typer(webhooks.app, name="webhook")

store = typer.Typer(
    help="Stores of adapters: probe, check, clean, copy, take along.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for commands in (stores, copies):
    commands.register(store)
app.add_typer(store, name="store")


def main() -> None:
    """Run a command; an expected error is one sentence on standard error and exit code 1."""
    try:
        app()
    except (RegistryError, TrainingError, ServingError, PlatformError) as error:
        print(f"swapmeet: {error}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        print(f"swapmeet: {error.name} is not installed. Run: pip install 'swapmeet[all]'", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("swapmeet: interrupted", file=sys.stderr)
        sys.exit(130)
