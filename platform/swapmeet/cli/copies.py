"""`swapmeet store fsck|mirror|export|import`: registries checked and copied."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swapmeet.cli.adapters_opened import store_of
from swapmeet.cli.options import Home, Json, RegistryUrl, open_registry, show, tell
from swapmeet.cli.tables import plain
from swapmeet.errors import RequestRefused

if TYPE_CHECKING:
    from swapmeet_registry.copies.importing import Imported

Url = Annotated[str, typer.Argument(help="file:///DIR, s3://BUCKET/PREFIX or hf://ORG.")]


def check(
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte, instead of sizes only.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what is safe to mend.")] = False,
    source: Annotated[str | None, typer.Option("--from", help="With --repair: a registry that has the same.")] = None,
    registry: RegistryUrl = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Check that a registry is whole: heads, aliases, every version's manifest and files."""
    from swapmeet_registry.upkeep.fsck import fsck

    if source is not None and not repair:
        raise RequestRefused("--from is what to repair from. Give --repair, too.")
    found = fsck(store_of(registry, home), deep, repair=repair, source=source)
    lines = [plain(f"{'mended: ' * problem.mended}{problem.what}") for problem in found.problems]
    if found.count > len(found.problems):
        lines.append(f"… and {found.count - len(found.problems)} more problems")
    lines.append(
        f"{found.heads} names, {found.versions} versions, {found.files} files ({found.bytes} bytes): "
        f"{found.count} problems, {found.mended} of them mended"
    )
    lines.append(
        f"Left over: {found.orphans} objects ({found.orphan_bytes} bytes) that no version needs and {found.intents} "
        f"intents of killed publishers, which `swapmeet store gc` removes; {found.partials} half-written files"
        + (" (removed)" if repair else ", which --repair removes")
    )
    if found.headless:
        lines.append(
            f"Without a head: {', '.join(found.headless[:10])}{' …' * (len(found.headless) > 10)}. Its first publish "
            "was killed, or its head was lost: then restore that before garbage is collected."
        )
    if not found.sound and source is None:
        lines.append("Lost manifests and files come back with --repair --from a registry that has the same versions.")
    show(asdict(found) | {"sound": found.sound}, "\n".join(lines), json)
    if not found.sound:
        raise typer.Exit(1)


def copy(
    source: Url,
    target: Url,
    names: Annotated[list[str] | None, typer.Argument(help="TENANT/NAME; all if none is named.")] = None,
    json: Json = False,
) -> None:
    """Copy adapters to another registry: the same versions, numbers, digests, aliases and withdrawals.

    What could not have been pushed is not copied: it keeps its number there, and is deleted.
    """
    from swapmeet_registry.copies.mirror import mirror

    done = mirror(open_registry(source).backend, open_registry(target).backend, names or None, tell)
    text = f"{done.names} names are as in {source}" if not done.refused else f"{len(done.refused)} names were refused"
    text += f", but for {len(done.unsound)} versions that could not have been pushed" if done.unsound else ""
    show(asdict(done), f"{text}; {done.versions} versions ({done.bytes} bytes) were copied", json)
    for what, why in (done.refused | done.unsound).items():
        tell(f"swapmeet: {what}: {plain(why)}")
    if done.refused or done.unsound:
        raise typer.Exit(1)


def export(
    references: Annotated[list[str], typer.Argument(help="TENANT/NAME for all of it, or TENANT/NAME:VERSION for one.")],
    to: Annotated[Path, typer.Option("--to", help="The file to make.")],
    registry: RegistryUrl = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Write adapters into one file, to be taken to where no network goes."""
    from swapmeet_registry.copies.bundle import export_bundle

    exported = export_bundle(open_registry(store_of(registry, home)), references, to)
    versions = [{"name": each.name, "version": each.version, "digest": each.digest} for each in exported]
    lines = [f"{each} {each.digest}" for each in exported]
    show({"file": str(to), "versions": versions}, "\n".join([*lines, f"{len(lines)} versions in {to}"]), json)


def import_(
    file: Annotated[Path, typer.Argument(help="What `store export` wrote.")],
    tenants: Annotated[
        list[str] | None, typer.Option("--tenant", help="Refuse adapters of any other; may be given again.")
    ] = None,
    registry: RegistryUrl = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Publish what a file has, once every byte of it was checked; what is there already stays."""
    from swapmeet_registry.copies.bundle import import_bundle

    store = open_registry(store_of(registry, home))
    found = import_bundle(store, file, tenants or None)
    lines = [
        f"{each.name}:{each.number} {each.digest}"
        + (f", which was :{each.version} where it comes from" if each.number != each.version else "")
        + ("" if each.new else ", which was there" if each.deleted is None else f", {_deleted(each)}")
        for each in found
    ]
    show({"versions": [asdict(each) for each in found]}, "\n".join(map(plain, lines)), json)


def register(group: typer.Typer) -> None:
    """Add the commands to `swapmeet store`."""
    group.command("fsck")(check)
    group.command("mirror")(copy)
    group.command("export")(export)
    group.command("import")(import_)


def _deleted(found: "Imported") -> str:
    return f"which was deleted here, and stays so: {found.deleted}"
