"""The group `swapmeet store`, to which several files add commands."""

import typer

store = typer.Typer(
    help="Stores of adapters: check, copy, take along.", no_args_is_help=True, pretty_exceptions_enable=False
)
