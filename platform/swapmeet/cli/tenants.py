"""`swapmeet tenant …`, `key …`, `usage` and `audit`: administration of a running server."""

import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from swapmeet.cli.options import Json, show, tell

if TYPE_CHECKING:
    from swapmeet.client import Client

tenant_app = typer.Typer(help="Tenants of a running server: create, list, show, set.", no_args_is_help=True)
key_app = typer.Typer(help="API keys of a running server: create, list, revoke, rotate.", no_args_is_help=True)


class Grouping(StrEnum):
    """What usage is told apart by."""

    tenant = "tenant"
    adapter = "adapter"
    key = "key"
    day = "day"


SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _amount(text: str) -> int | None:
    """A limit: a whole number, or `none`."""
    if text == "none":
        return None
    if not text.isascii() or not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is not a limit. Give a whole number, or 'none'.")
    return int(text)


def _seconds(text: str) -> int:
    """A duration such as `90d`, `12h`, `30m` or `45s`."""
    found = re.fullmatch(r"([0-9]{1,12})([smhd]?)", text)
    if not found:
        raise typer.BadParameter(f"{text!r} is not a duration. Write 90d, 12h, 30m or 45s.")
    return int(found[1]) * SECONDS[found[2]]


Limit = Annotated[str | None, typer.Option(metavar="NUMBER|none")]
Tenant = Annotated[str | None, typer.Option("--tenant", help="Whose; your own otherwise, or as operator all.")]
Name = Annotated[str, typer.Argument(help="The tenant's name.")]
KeyId = Annotated[str, typer.Argument(help="The key's id, key-…")]


@tenant_app.command()
def create(
    name: Name,
    weight: Annotated[float | None, typer.Option(help="Its share of the machines, beside others' shares.")] = None,
    concurrent_runs: Limit = None,
    gpu_seconds_a_day: Limit = None,
    stored_bytes: Limit = None,
    tokens_a_minute: Limit = None,
    requests_a_minute: Limit = None,
    json: Json = False,
) -> None:
    """Make a tenant; without limits but those that are given."""
    quotas = _quotas(
        concurrent_runs=concurrent_runs,
        gpu_seconds_a_day=gpu_seconds_a_day,
        stored_bytes=stored_bytes,
        tokens_a_minute=tokens_a_minute,
        requests_a_minute=requests_a_minute,
    )
    with _client() as client:
        made = client.call("POST", "/v1/tenants", {"name": name} | _given(weight=weight) | quotas)
    show(made, _tenant_lines(made), json)


@tenant_app.command("list")
def list_tenants(json: Json = False) -> None:
    """The tenants."""
    with _client() as client:
        rows = list(client.listed("/v1/tenants"))
    lines = [f"{row['name']:32} weight {row['weight']:g}{'  suspended' * bool(row['suspended_at'])}" for row in rows]
    show({"tenants": rows}, "\n".join(lines), json)


@tenant_app.command("show")
def show_tenant(name: Name, json: Json = False) -> None:
    """A tenant's share and limits."""
    with _client() as client:
        row = client.call("GET", _path("tenants", name))
    show(row, _tenant_lines(row), json)


@tenant_app.command("set")
def set_tenant(
    name: Name,
    weight: Annotated[float | None, typer.Option(help="Its share of the machines, beside others' shares.")] = None,
    concurrent_runs: Limit = None,
    gpu_seconds_a_day: Limit = None,
    stored_bytes: Limit = None,
    tokens_a_minute: Limit = None,
    requests_a_minute: Limit = None,
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
    )
    with _client() as client:
        row = client.call("POST", _path("tenants", name), _given(weight=weight, suspended=suspend) | quotas)
    show(row, _tenant_lines(row), json)


@key_app.command("create")
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
    body = {"scopes": scope, "name": name} | _given(tenant=tenant, expires_in=_seconds(expires) if expires else None)
    with _client() as client:
        made = client.call("POST", "/v1/keys", body)
    _show_new(made, json)


@key_app.command("list")
def list_keys(tenant: Tenant = None, json: Json = False) -> None:
    """The keys, newest first."""
    with _client() as client:
        rows = list(client.listed("/v1/keys", {"tenant": tenant}))
    lines = [
        f"{row['id']}  …{row['hint']:4}  {row['tenant']:20} {row['status']:8} {','.join(row['scopes']):30} "
        f"used {_day(row['last_used_at'])}  ends {_day(row['expires_at'])}  {row['name']}".rstrip()
        for row in rows
    ]
    show({"keys": rows}, "\n".join(lines), json)


@key_app.command()
def revoke(key: KeyId, json: Json = False) -> None:
    """End a key at once."""
    with _client() as client:
        done = client.call("DELETE", _path("keys", key))
    show(done, f"{done['id']} is revoked", json)


@key_app.command()
def rotate(
    key: KeyId,
    grace: Annotated[str, typer.Option(help="How long the old key stays good.")] = "24h",
    json: Json = False,
) -> None:
    """Make a key with the same rights, and have the old one end."""
    body = {"grace": _seconds(grace)}
    with _client() as client:
        made = client.call("POST", _path("keys", key) + "/rotate", body)
    _show_new(made, json)


def usage(
    start: Annotated[str | None, typer.Option(help="A date such as 2026-11-01; 30 days ago otherwise.")] = None,
    end: Annotated[str | None, typer.Option(help="Until before this date; now otherwise.")] = None,
    by: Annotated[list[Grouping] | None, typer.Option(help="What to tell apart.")] = None,
    tenant: Tenant = None,
    owned: Annotated[bool, typer.Option("--owned", help="What all used of the tenant's adapters.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print a table as CSV.")] = False,
    json: Json = False,
) -> None:
    """What was used: tokens, GPU-seconds, storage."""
    query = {
        "start": start,
        "end": end,
        "by": [each.value for each in by or []] or None,
        "tenant": tenant,
        "owned": owned or None,
    }
    with _client() as client:
        if csv:
            print(client.text("/v1/usage", query | {"format": "csv"}), end="", flush=True)
            return
        report = client.call("GET", "/v1/usage", query=query)
    lines = [line for row in report["data"] for line in _usage_lines(row, by or [])]
    show(report, "\n".join(lines) or "nothing was used", json)


def audit(
    tenant: Tenant = None,
    action: Annotated[str | None, typer.Option(help="Only this, such as key.create.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest so many.")] = 100,
    json: Json = False,
) -> None:
    """Who did what to what, newest first."""
    with _client() as client:
        page = client.call("GET", "/v1/audit", query={"tenant": tenant, "action": action, "limit": limit})
    lines = [
        f"{_moment(row['at'])}  {row['actor']['tenant']} {row['actor']['key']}  {row['action']} {row['subject']}  "
        f"{row['outcome']}  {row['detail']}".rstrip()
        for row in page["data"]
    ]
    show(page, "\n".join(lines), json)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.add_typer(tenant_app, name="tenant")
    app.add_typer(key_app, name="key")
    app.command()(usage)
    app.command()(audit)


def _client() -> "Client":
    from swapmeet.client import Client

    return Client()


def _path(kind: str, name: str) -> str:
    return f"/v1/{kind}/{quote(name, safe='')}"


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _quotas(**limits: str | None) -> dict[str, Any]:
    """The limits that were given, for the request's body."""
    given = {name: _amount(text) for name, text in limits.items() if text is not None}
    return {"quotas": given} if given else {}


def _tenant_lines(row: dict[str, Any]) -> str:
    quotas = [f"  {name:20} {'none' if value is None else value}" for name, value in row["quotas"].items()]
    state = [f"  suspended since {_moment(row['suspended_at'])}"] if row["suspended_at"] else []
    return "\n".join([row["name"], f"  {'weight':20} {row['weight']:g}", *quotas, *state])


def _usage_lines(row: dict[str, Any], by: list[Grouping]) -> list[str]:
    amounts = {kind: amount for kind, amount in row.items() if isinstance(amount, int) and amount}
    group = [" ".join(row[each.value] or "-" for each in by)] if by else []
    return [*group, *(f"  {kind:24} {amount:>16,}" for kind, amount in amounts.items())]


def _show_new(made: dict[str, Any], json: bool) -> None:
    until = f", until {_moment(made['expires_at'])}" if made["expires_at"] else ""
    if not json:
        tell(f"{made['id']} of {made['tenant']} may {', '.join(made['scopes'])}{until}. It is not shown again:")
    show(made, str(made["value"]), json)


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _day(seconds: int | None) -> str:
    return "never" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
