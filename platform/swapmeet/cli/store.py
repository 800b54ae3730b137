"""`swapmeet store`: what is done with stores as a whole, by whoever may read and write them; no server does it."""

import typer

from swapmeet.cli import copies, stores

app = typer.Typer(
    help="Stores of adapters, without a server: probe, check, clean, copy, take along.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for commands in (stores, copies):
    commands.register(app)
