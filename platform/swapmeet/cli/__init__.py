"""The command line: `swapmeet COMMAND`. Exit code 0 done, 1 refused or failed, 2 wrong usage."""

import sys
from typing import Annotated

import typer

from swapmeet.cli.commands import Commands

ERRORS = {
    "swapmeet.errors": "PlatformError",
    "swapmeet_registry.errors": "RegistryError",
    "swapmeet_serving.errors": "ServingError",
    "swapmeet_training.errors": "TrainingError",
}
"""By module: the errors that are told in one sentence."""

app = typer.Typer(
    name="swapmeet",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"swapmeet {version('swapmeet')}")
        raise typer.Exit


@app.callback(help="Fine-tune, keep and serve LoRA adapters on one shared NF4 base.")
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Take the options that stand before the command."""


def main() -> None:
    """Run a command; an expected error is one sentence on standard error and exit code 1."""
    try:
        app()
    except SystemExit:
        raise
    except _expected() as error:
        print(f"swapmeet: {error}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        print(f"swapmeet: {error.name} is not installed. Run: pip install 'swapmeet[all]'", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("swapmeet: interrupted", file=sys.stderr)
        sys.exit(130)


def _expected() -> tuple[type[Exception], ...]:
    """The errors of what was imported: no other can have been raised."""
    return tuple(getattr(sys.modules[module], name) for module, name in ERRORS.items() if module in sys.modules)
