"""`swapmeet tenant create|list|show|set`."""

from typing import Annotated, Any

import typer

from swapmeet.cli.options import Json, not_empty, show
from swapmeet.cli.remote import connect, given, moment, path_of

app = typer.Typer(help="Tenants of a running server: create, list, show, set.", no_args_is_help=True)


def _amount(text: str) -> int | None:
    """A limit: a whole number, or `none`."""
    if text == "none":
        return None
    if not text.isascii() or not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is not a limit. Give a whole number, or 'none'.")
    return int(text)


Limit = Annotated[str | None, typer.Option(metavar="NUMBER|none")]
Name = Annotated[str, typer.Argument(help="The tenant's name.", callback=not_empty)]


@app.command()
def create(
    name: Name,
    weight: Annotated[float | None, typer.Option(help="Its share of the machines, beside others' shares.")] = None,
    concurrent_runs: Limit = None,
    gpu_seconds_a_day: Limit = None,
    stored_bytes: Limit = None,
    tokens_a_minute: Limit = None,
    requests_a_minute: Limit = None,
    stored_versions: Limit = None,
    json: Json = False,
) -> None:
    """Make a tenant; without limits but those that are given."""
    quotas = _quotas(
        concurrent_runs=concurrent_runs,
        gpu_seconds_a_day=gpu_seconds_a_day,
        stored_bytes=stored_bytes,
        tokens_a_minute=tokens_a_minute,
        requests_a_minute=requests_a_minute,
        stored_versions=stored_versions,
    )
    with connect() as client:
        made = client.call("POST", "/v1/tenants", {"name": name} | given(weight=weight) | quotas)
    show(made, _tenant_lines(made), json)


@app.command("list")
def list_tenants(json: Json = False) -> None:
    """The tenants."""
    with connect() as client:
        rows = list(client.listed("/v1/tenants"))
    lines = [f"{row['name']:32} weight {row['weight']:g}{'  suspended' * bool(row['suspended_at'])}" for row in rows]
    show({"tenants": rows}, "\n".join(lines), json)


@app.command("show")
def show_tenant(name: Name, json: Json = False) -> None:
    """A tenant's share and limits."""
    with connect() as client:
        row = client.call("GET", path_of("tenants", name))
    show(row, _tenant_lines(row), json)


@app.command("set")
def set_tenant(
    name: Name,
    weight: Annotated[float | None, typer.Option(help="Its share of the machines, beside others' shares.")] = None,
    concurrent_runs: Limit = None,
    gpu_seconds_a_day: Limit = None,
    stored_bytes: Limit = None,
    tokens_a_minute: Limit = None,
    requests_a_minute: Limit = None,
    stored_versions: Limit = None,
    suspend: Annotated[bool | None, typer.Option("--suspend/--unsuspend", help="Refuse all of its requests.")] = None,
    json: Json = False,
) -> None:
    """Change what is given of a tenant; the rest stays."""
    quotas = _quotas(
        concurrent_runs=concurrent_runs,
        gpu_seconds_a_day=gpu_seconds_a_day,
        stored_bytes=stored_bytes,
        tokens_a_minute=tokens_a_minute,
        requests_a_minute=requests_a_minute,
        stored_versions=stored_versions,
    )
    with connect() as client:
        row = client.call("POST", path_of("tenants", name), given(weight=weight, suspended=suspend) | quotas)
    show(row, _tenant_lines(row), json)


def _quotas(**limits: str | None) -> dict[str, Any]:
    """The limits that were given, for the request's body."""
    limited = {name: _amount(text) for name, text in limits.items() if text is not None}
    return {"quotas": limited} if limited else {}


def _tenant_lines(row: dict[str, Any]) -> str:
    quotas = [f"  {name:20} {'none' if value is None else value}" for name, value in row["quotas"].items()]
    state = [f"  suspended since {moment(row['suspended_at'])}"] if row["suspended_at"] else []
    return "\n".join([row["name"], f"  {'weight':20} {row['weight']:g}", *quotas, *state])
