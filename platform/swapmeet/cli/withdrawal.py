"""`swapmeet recall|delete|untag|undo|share|history|reach`, each by a server or straight on its store."""

import getpass
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from swapmeet.cli.adapters_opened import adapters_at
from swapmeet.cli.options import Home, Json, RegistryUrl, ServerUrl, not_empty, show, tell
from swapmeet.cli.tables import plain, table
from swapmeet.errors import RequestRefused
from swapmeet_registry.names import AdapterName, Reference

if TYPE_CHECKING:
    from swapmeet.adapter_client import RemoteAdapters
    from swapmeet_registry import Listing, Registry, Version
    from swapmeet_registry.recalls import Reached

Name = Annotated[str, typer.Argument(help="TENANT/NAME", callback=not_empty)]
One = Annotated[str, typer.Argument(help="TENANT/NAME:VERSION, :ALIAS or @sha256:DIGEST.", callback=not_empty)]
Reason = Annotated[str, typer.Option(help="Why; whoever asks for the version reads it.")]
Alias = Annotated[str, typer.Argument(help="Such as prod.", callback=not_empty)]

WAIT_SECONDS = 60.0
"""How long `recall --wait` waits for all servers."""
FIRST_WORD_SECONDS = 2.5
"""How long it waits at least: a server that loaded its first adapter just now has told nobody of itself."""


def recall(
    reference: One,
    reason: Reason,
    wait: Annotated[bool, typer.Option("--wait", help="Return when all servers obey, and say what they had.")] = False,
    url: ServerUrl = None,
    registry: RegistryUrl = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Forbid a version to everybody. Servers drop it within seconds, and end the requests that use it."""
    with adapters_at(url, registry, home) as adapters:
        if wait:
            _reach(adapters, reference)  # is refused now where nobody would say what he did
        version = adapters.recall(reference, reason)
        reached = _await_servers(adapters, version) if wait else ()
    result = _result(version, version.recalled) | ({"servers": [asdict(each) for each in reached]} if wait else {})
    lines = [f"{version} is recalled: {plain(version.recalled)}", *(_servers(reached) if wait else ())]
    show(result, "\n".join(lines), json)
    if late := [each.server for each in reached if each.at is None]:
        tell(f"swapmeet: {len(late)} of {len(reached)} servers did not obey within {WAIT_SECONDS:g} s. See their logs.")
        raise typer.Exit(1)


def reach(
    reference: One, url: ServerUrl = None, registry: RegistryUrl = None, home: Home = None, json: Json = False
) -> None:
    """Which servers a recall or deletion reached, and what they had of the version."""
    with adapters_at(url, registry, home) as adapters:
        version, reached = _reach(adapters, reference)
    result = _result(version, version.recalled or version.deleted) | {"servers": [asdict(each) for each in reached]}
    show(result, "\n".join(_servers(reached)), json)


def delete(
    reference: Annotated[str, typer.Argument(help="As for yank; with --all TENANT/NAME.", callback=not_empty)],
    reason: Reason,
    everything: Annotated[bool, typer.Option("--all", help="Every version of the name, which stays taken.")] = False,
    url: ServerUrl = None,
    registry: RegistryUrl = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Delete a version for good. Its number stays taken, and its files go with the next collection of garbage."""
    parsed = Reference.parse(reference)
    whole = parsed.version is None and parsed.digest is None and parsed.alias is None
    if whole != everything:
        what = "every version of it" if whole else "one version"
        advice = "Say --all if you mean that" if whole else "Leave out --all, or name TENANT/NAME alone"
        raise RequestRefused(f"{reference} is {what}. {advice}.")
    with adapters_at(url, registry, home) as adapters:
        deleted = adapters.delete_all(reference, reason) if whole else (adapters.delete(reference, reason),)
    lines = [f"{version} is deleted: {plain(version.deleted)}" for version in deleted]
    results = [_result(version, version.deleted) for version in deleted]
    result = {"name": reference, "versions": results} if whole else results[0]
    show(result, "\n".join(lines or [f"{reference} has no version that is not deleted."]), json)


def untag(
    name: Name,
    alias: Alias,
    expect: Annotated[int | None, typer.Option(help="Remove only if it points to this version now.")] = None,
    url: ServerUrl = None,
    registry: RegistryUrl = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Remove an alias."""
    with adapters_at(url, registry, home) as adapters:
        listing = adapters.untag(name, alias, expect, by=person())
    show(_alias(listing, alias), f"{name}:{alias} is removed", json)


def undo(
    name: Name,
    alias: Alias,
    url: ServerUrl = None,
    registry: RegistryUrl = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Point an alias to where it pointed before its last move."""
    with adapters_at(url, registry, home) as adapters:
        listing = adapters.undo(name, alias, by=person())
    result = _alias(listing, alias)
    state = f"is version {result['version']} again" if result["version"] else "is removed, as it was new"
    show(result, f"{name}:{alias} {state}", json)


def share(
    name: Name,
    visibility: Annotated[Literal["private", "public", "shared"], typer.Argument(help="Who may read it.")],
    tenants: Annotated[list[str] | None, typer.Option("--with", help="A tenant; may be given again.")] = None,
    url: ServerUrl = None,
    registry: RegistryUrl = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Say who may read an adapter: its owner only, tenants that are named, or all."""
    with adapters_at(url, registry, home) as adapters:
        listing = adapters.share(name, visibility, tenants or ())
    result = {"name": listing.name, "visibility": listing.visibility, "shared_with": list(listing.shared_with)}
    show(result, "\n".join(readers(listing)) or f"{name} is private", json)


def history(
    name: Name, url: ServerUrl = None, registry: RegistryUrl = None, home: Home = None, json: Json = False
) -> None:
    """Moves of an adapter's aliases: when, which, to what version, and by whom."""
    with adapters_at(url, registry, home) as adapters:
        listing = adapters.show(name)
    moves = [asdict(move) for move in listing.history]
    rows = [(move.at, move.alias, move.version or "removed", move.by) for move in listing.history]
    lines = [f"{listing.forgotten} older moves are forgotten."] if listing.forgotten else []
    lines.append(table(("at", "alias", "version", "by"), rows))
    show({"name": listing.name, "history": moves, "forgotten": listing.forgotten}, "\n".join(lines), json)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (recall, reach, delete, untag, undo, share, history):
        app.command()(command)


def person() -> str | None:
    """Whose name stands in an alias's history; None where the machine knows none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


def withdrawal(version: "Version") -> Iterator[str]:
    """What is to be said of a version that was withdrawn."""
    reasons = {"yanked": version.yank_reason, "recalled": version.recalled, "deleted": version.deleted}
    return (f"{how}: {reason}" for how, reason in reasons.items() if reason is not None)


def readers(listing: "Listing") -> list[str]:
    """What is to be said of who may read an adapter, unless only its owner may."""
    if listing.visibility == "private":
        return []
    whom = f"shared with {', '.join(listing.shared_with)}" if listing.visibility == "shared" else "public"
    return [f"{listing.name} is {whom}"]


def _reach(adapters: "Registry | RemoteAdapters", ref: str) -> "tuple[Version, tuple[Reached, ...]]":
    from swapmeet.adapter_reach import reach as reached_of
    from swapmeet_registry import Registry

    return reached_of(adapters, ref) if isinstance(adapters, Registry) else adapters.reach(ref)


def _await_servers(adapters: "Registry | RemoteAdapters", version: "Version") -> "tuple[Reached, ...]":
    began = time.monotonic()
    while True:
        reached, waited = _reach(adapters, version.pinned)[1], time.monotonic() - began
        obeyed = all(each.at is not None for each in reached)
        if waited > WAIT_SECONDS or (obeyed and waited > FIRST_WORD_SECONDS):
            return reached
        time.sleep(0.5)


def _servers(reached: "tuple[Reached, ...]") -> list[str]:
    if not reached:
        return ["No server holds adapters of this registry."]
    headings = ("server", "host", "obeyed at", "held it", "requests ended", "tenants")
    rows = [
        (
            each.server, each.host, each.at or "not yet", "yes" if each.held else "no", each.ended,
            ", ".join(each.tenants),
        )
        for each in reached
    ]  # fmt: skip
    return [table(headings, rows)]


def _result(version: "Version", reason: str | None) -> dict[str, object]:
    return {"name": version.name, "version": version.version, "digest": version.digest, "reason": reason}


def _alias(listing: "Listing", alias: str) -> dict[str, object]:
    return {"name": str(AdapterName.parse(listing.name)), "alias": alias, "version": listing.aliases.get(alias, 0)}
