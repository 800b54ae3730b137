"""`swapmeet push|pull|show|tag|yank`: a server's registry if one is named, or one straight on its store."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swapmeet.cli.adapters_opened import adapters_at
from swapmeet.cli.options import BaseName, Home, Json, RegistryUrl, ServerUrl, load_settings, show, tell
from swapmeet.cli.tables import plain
from swapmeet.cli.withdrawal import by, readers, withdrawal
from swapmeet_registry.names import Reference

if TYPE_CHECKING:
    from swapmeet.adapter_client import RemoteAdapters
    from swapmeet_registry import Listing, Registry

Ref = Annotated[str, typer.Argument(help="TENANT/NAME, with :VERSION, :ALIAS or @sha256:DIGEST where wanted.")]


def push(
    folder: Annotated[Path, typer.Argument(help="A PEFT LoRA folder.")],
    name: Annotated[str, typer.Argument(help="TENANT/NAME")],
    base: BaseName,
    alias: Annotated[str | None, typer.Option(help="An alias to move to the new version.")] = None,
    license: Annotated[str | None, typer.Option(help="An SPDX licence id.")] = None,  # noqa: A002 - the option's name
    tag: Annotated[list[str] | None, typer.Option(help="A word to find it by; may be given again.")] = None,
    run: Annotated[str | None, typer.Option(help="What made it: pushed twice, it is one version.")] = None,
    url: ServerUrl = None,
    registry: RegistryUrl = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Publish an adapter as a new version."""
    from swapmeet_registry import Registry
    from swapmeet_registry.bases import BaseLibrary, module_shapes

    with adapters_at(url, registry, home) as adapters:
        if isinstance(adapters, Registry):
            trained_on = BaseLibrary(load_settings(home=home).folder, tell).find(base)
            fits: dict[str, Any] = {
                "base": trained_on.fingerprint,
                "base_license": trained_on.license,
                "modules": module_shapes(trained_on.path),
            }
        else:
            fits = {"base": base}
        version = adapters.push(folder, name, alias=alias, license=license, tags=tag or (), run=run, **fits)
    result = {"name": version.name, "version": version.version, "digest": version.digest}
    show(result, f"{version} {version.digest}", json)


def pull(
    reference: Ref,
    folder: Annotated[Path, typer.Argument(help="A folder to make.")],
    base: Annotated[str | None, typer.Option("--base", help="Refuse an adapter of any other base.")] = None,
    url: ServerUrl = None,
    registry: RegistryUrl = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Fetch an adapter as a PEFT folder, every byte checked."""
    from swapmeet_registry.bases import BaseLibrary

    wanted = BaseLibrary(load_settings(home=home).folder, tell).find(base).fingerprint if base else None
    with adapters_at(url, registry, home) as adapters:
        version = adapters.pull(reference, folder, base=wanted)
    result = {"name": version.name, "version": version.version, "digest": version.digest, "folder": str(folder)}
    show(result, f"{version} {version.digest} in {folder}", json)


def show_adapter(
    name: str, url: ServerUrl = None, registry: RegistryUrl = None, home: Home = None, json: Json = False
) -> None:
    """An adapter's versions and aliases, and what stands out of the weights of its latest version."""
    with adapters_at(url, registry, home) as adapters:
        listing = adapters.show(name)
        advice = _advice(adapters, listing)
    lines = []
    for version in listing.versions:
        aliases = [alias for alias, number in listing.aliases.items() if number == version.version]
        notes = ", ".join([*aliases, *withdrawal(version)])
        lines.append(plain(f"{version!s:32} {version.created_at}  {version.digest}  {notes}"))
    lines += [*(f"advice: {plain(each)}" for each in advice), *readers(listing)]
    show(asdict(listing) | {"advice": list(advice)}, "\n".join(lines), json)


def tag(
    reference: Ref,
    alias: Annotated[str, typer.Argument(help="The alias to move, such as prod.")],
    expect: Annotated[int | None, typer.Option(help="Move only if it points to this version now (0: nowhere).")] = None,
    url: ServerUrl = None,
    registry: RegistryUrl = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Point an alias to a version."""
    with adapters_at(url, registry, home) as adapters:
        version = adapters.tag(str(Reference.parse(reference).name), alias, reference, expect=expect, **by(adapters))
    result = {"name": version.name, "alias": alias, "version": version.version, "digest": version.digest}
    show(result, f"{version.name}:{alias} is version {version.version}", json)


def yank(
    reference: Annotated[str, typer.Argument(help="TENANT/NAME:VERSION, :ALIAS or @sha256:DIGEST.")],
    reason: Annotated[str, typer.Option(help="Why; whoever asks for the version reads it.")],
    url: ServerUrl = None,
    registry: RegistryUrl = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Withdraw a version: it is not served any more, except to whoever names its digest."""
    with adapters_at(url, registry, home) as adapters:
        version = adapters.yank(reference, reason)
    result = {
        "name": version.name, "version": version.version, "digest": version.digest, "reason": version.yank_reason,
    }  # fmt: skip
    show(result, f"{version} is withdrawn: {version.yank_reason}", json)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(push)
    app.command()(pull)
    app.command("show")(show_adapter)
    app.command()(tag)
    app.command()(yank)


def _advice(adapters: "Registry | RemoteAdapters", listing: "Listing") -> tuple[str, ...]:
    from swapmeet_registry import Registry

    latest = next((each for each in reversed(listing.versions) if each.usable), None)
    if latest is None:
        return ()
    return adapters.advice(latest) if isinstance(adapters, Registry) else adapters.advice(listing.name)
