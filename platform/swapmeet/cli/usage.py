"""`swapmeet usage|audit`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from swapmeet.audit_export import Link, verify
from swapmeet.cli.options import Json, show
from swapmeet.cli.remote import Tenant, connect, moment
from swapmeet_registry.stores.files import os_errors

audit = typer.Typer(help="Who did what to what: list, export, verify.")


class Grouping(StrEnum):
    """What usage is told apart by."""

    tenant = "tenant"
    adapter = "adapter"
    key = "key"
    day = "day"


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
    if csv and json:
        raise typer.BadParameter("CSV and JSON are two forms of the same. Keep one of them.", param_hint="--csv")
    query = {
        "start": start,
        "end": end,
        "by": [each.value for each in by or []] or None,
        "tenant": tenant,
        "owned": owned or None,
    }
    with connect() as client:
        if csv:
            print(client.text("/v1/usage", query | {"format": "csv"}), end="", flush=True)
            return
        report = client.call("GET", "/v1/usage", query=query)
    lines = [line for row in report["data"] for line in _usage_lines(row, by or [])]
    show(report, "\n".join(lines) or "nothing was used", json)


@audit.callback(invoke_without_command=True)
def list_audit(
    context: typer.Context,
    tenant: Tenant = None,
    action: Annotated[str | None, typer.Option(help="Only this, such as key.create.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest so many.")] = 100,
    json: Json = False,
) -> None:
    """Who did what to what, newest first; or one of these commands."""
    if context.invoked_subcommand is not None:
        return
    with connect() as client:
        page = client.call("GET", "/v1/audit", query={"tenant": tenant, "action": action, "limit": limit})
    lines = [
        f"{moment(row['at'])}  {row['actor']['tenant']} {row['actor']['key']}  {row['action']} {row['subject']}  "
        f"{row['outcome']}  {row['detail']}".rstrip()
        for row in page["data"]
    ]
    show(page, "\n".join(lines), json)


@audit.command("export")
def export_audit(
    file: Annotated[Path, typer.Argument(help="A file to make.")], tenant: Tenant = None, json: Json = False
) -> None:
    """Write a tenant's whole log, your own otherwise, to a file that `verify` checks."""
    with connect() as client, os_errors(f"write {file}"), file.open("xb") as stream:
        try:
            stream.writelines(client.chunks("/v1/audit/export", {"tenant": tenant}))
        except BaseException:  # half a log is none, and would be in the way of the next try
            file.unlink()
            raise
    _show_ends(file, json)


@audit.command("verify")
def verify_audit(
    file: Annotated[Path, typer.Argument(help="What `export` wrote.")],
    contains: Annotated[
        str | None, typer.Option(help="The hash of an entry that was noted before: it must be in the log still.")
    ] = None,
    json: Json = False,
) -> None:
    """Check, without a server, that no entry of an exported log was changed, removed, added or moved.

    What was begun and has not ended is named: a server that was killed may have done it or not.
    """
    _show_ends(file, json, contains)


def _show_ends(file: Path, json: bool, contains: str | None = None) -> None:
    with os_errors(f"read {file}"), file.open(encoding="utf-8", errors="surrogateescape") as lines:
        ends = verify(lines, contains)
    rows = [{"tenant": end.tenant, "sequence": end.sequence, "hash": end.hash, "unended": end.unended} for end in ends]
    text = "\n".join(line for end in ends for line in _end_lines(end))
    show({"logs": rows}, text, json)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(usage)
    app.add_typer(audit, name="audit")


def _end_lines(end: Link) -> list[str]:
    return [f"{end.tenant}: whole up to entry {end.sequence}, {end.hash}"] + [
        f"  entry {each['sequence']}, {each['at'][:19]}Z: {each['action']} {each['subject']} was begun and has not "
        "ended: it is under way, or its server was killed, and it was done or not"
        for each in end.unended
    ]


def _usage_lines(row: dict[str, Any], by: list[Grouping]) -> list[str]:
    amounts = {kind: amount for kind, amount in row.items() if isinstance(amount, int) and amount}
    group = [" ".join(row[each.value] or "-" for each in by)] if by else []
    return [*group, *(f"  {kind:24} {amount:>16,}" for kind, amount in amounts.items())]
