"""What the commands that talk to a server share."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

if TYPE_CHECKING:
    from swapmeet.client import Client

Tenant = Annotated[str | None, typer.Option("--tenant", help="Whose; your own otherwise, or as operator all.")]


def connect() -> "Client":
    """A client of the server that SWAPMEET_URL names."""
    from swapmeet.client import Client  # takes longer to import than most commands take to run

    return Client()


def path_of(kind: str, name: str) -> str:
    """The path of one thing, whatever its name has in it."""
    return f"/v1/{kind}/{quote(name, safe='')}"


def given(**values: Any) -> dict[str, Any]:
    """What is not None."""
    return {name: value for name, value in values.items() if value is not None}


def moment(seconds: int) -> str:
    """A moment for people."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def day(seconds: int | None) -> str:
    """A moment's day for people."""
    return "never" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
