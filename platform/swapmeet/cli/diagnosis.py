"""`swapmeet doctor`."""

from typing import Annotated

import typer

from swapmeet.cli.options import Home, Json, RegistryUrl, load_settings, show


def doctor(
    registry: RegistryUrl = None,
    port: Annotated[int | None, typer.Option(help="Port that a server would listen on.")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Check what this machine has and what would stop a run or a server."""
    from swapmeet.doctor import examine

    findings = examine(load_settings(home=home, registry=registry, port=port))
    rows = [f"{'ok  ' if finding.ok else 'FAIL'}  {finding.what:12} {finding.detail}" for finding in findings]
    healthy = all(finding.ok for finding in findings)
    show({"healthy": healthy, "findings": [vars(finding) for finding in findings]}, "\n".join(rows), json)
    if not healthy:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(doctor)
