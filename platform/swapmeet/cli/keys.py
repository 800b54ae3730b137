"""`swapmeet key create|list|revoke|rotate`."""

import re
from typing import Annotated, Any

import typer

from swapmeet.cli.options import Json, not_empty, show, tell
from swapmeet.cli.remote import Tenant, connect, day, given, moment, path_of

app = typer.Typer(help="API keys of a running server: create, list, revoke, rotate.", no_args_is_help=True)

SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
KeyId = Annotated[str, typer.Argument(help="The key's id, key-…", callback=not_empty)]


@app.command("create")
def create_key(
    scope: Annotated[
        list[str],
        typer.Option(
            help="infer, read, train, publish, admin, metrics, or a role: owner, developer, application, reader. "
            "May be given again."
        ),
    ],
    tenant: Annotated[str | None, typer.Option(help="Whose; your own otherwise.")] = None,
    name: Annotated[str, typer.Option(help="To tell it from others by.")] = "",
    expires: Annotated[str | None, typer.Option(help="After how long it ends, such as 90d.")] = None,
    json: Json = False,
) -> None:
    """Make a key. It is printed once, and kept nowhere."""
    body = {"scopes": scope, "name": name} | given(tenant=tenant, expires_in=_seconds(expires) if expires else None)
    with connect() as client:
        made = client.call("POST", "/v1/keys", body)
    _show_new(made, json)


@app.command("list")
def list_keys(tenant: Tenant = None, json: Json = False) -> None:
    """The keys, newest first."""
    with connect() as client:
        rows = list(client.listed("/v1/keys", {"tenant": tenant}))
    lines = [
        f"{row['id']}  …{row['hint']:4}  {row['tenant']:20} {row['status']:8} {','.join(row['scopes']):30} "
        f"used {day(row['last_used_at'])}  ends {day(row['expires_at'])}  {row['name']}".rstrip()
        for row in rows
    ]
    show({"keys": rows}, "\n".join(lines), json)


@app.command()
def revoke(key: KeyId, json: Json = False) -> None:
    """End a key at once."""
    with connect() as client:
        done = client.call("DELETE", path_of("keys", key))
    show(done, f"{done['id']} is revoked", json)


@app.command()
def rotate(
    key: KeyId,
    grace: Annotated[str, typer.Option(help="How long the old key stays good.")] = "24h",
    json: Json = False,
) -> None:
    """Make a key with the same rights, and have the old one end."""
    body = {"grace": _seconds(grace)}
    with connect() as client:
        made = client.call("POST", path_of("keys", key) + "/rotate", body)
    _show_new(made, json)


def _seconds(text: str) -> int:
    """A duration such as `90d`, `12h`, `30m` or `45s`."""
    found = re.fullmatch(r"([0-9]{1,12})([smhd]?)", text)
    if not found:
        raise typer.BadParameter(f"{text!r} is not a duration. Write 90d, 12h, 30m or 45s.")
    return int(found[1]) * SECONDS[found[2]]


def _show_new(made: dict[str, Any], json: bool) -> None:
    until = f", until {moment(made['expires_at'])}" if made["expires_at"] else ""
    if not json:
        tell(f"{made['id']} of {made['tenant']} may {', '.join(made['scopes'])}{until}. It is not shown again:")
    show(made, str(made["value"]), json)
