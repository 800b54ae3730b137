"""`swapmeet lineage|bom`: where a version comes from, for people and for other tools."""

import json as json_
from pathlib import Path
from typing import Annotated, Any

import typer

from swapmeet.cli.adapters import Ref
from swapmeet.cli.adapters_opened import adapters_at
from swapmeet.cli.options import Home, Json, RegistryUrl, ServerUrl, show
from swapmeet.cli.tables import plain
from swapmeet_registry.origin.bom import bom as bill
from swapmeet_registry.origin.licences import concerns_of
from swapmeet_registry.origin.lineage import Ancestor, lines
from swapmeet_registry.stores.files import os_errors


def lineage(
    reference: Ref, url: ServerUrl = None, registry: RegistryUrl = None, home: Home = None, json: Json = False
) -> None:
    """The adapters that a version's training went on from, up to the base, and what made each."""
    with adapters_at(url, registry, home) as adapters:
        version = adapters.resolve(reference)
        manifest, parents = adapters.manifest(version), adapters.lineage(version)
    concerns = concerns_of(manifest, parents[0].manifest if parents else None)
    result = {
        "name": version.name,
        "version": version.version,
        "digest": version.digest,
        **manifest.provenance().model_dump(mode="json", by_alias=True),
        "licence_concerns": list(concerns),
        "parents": [_described(each) for each in parents],
    }
    text = [plain(line) for line in (*lines(version, manifest, parents), *concerns)]
    show(result, "\n".join(text), json)


def bom(
    reference: Ref,
    output: Annotated[Path | None, typer.Option(help="The file to write; standard output otherwise.")] = None,
    url: ServerUrl = None,
    registry: RegistryUrl = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """A version's bill of materials (CycloneDX 1.6, JSON): files, base, data, packages, licences and metrics."""
    with adapters_at(url, registry, home) as adapters:
        version = adapters.resolve(reference)
        document = bill(version, adapters.manifest(version), adapters.lineage(version))
    text = json_.dumps(json_.loads(document), indent=None if json else 2, ensure_ascii=False) + "\n"
    if output is None:
        print(text, end="", flush=True)
        return
    with os_errors(f"write {output}"):
        output.write_text(text, encoding="utf-8")


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(lineage)
    app.command()(bom)


def _described(ancestor: Ancestor) -> dict[str, Any]:
    made = ancestor.manifest
    return {
        "ref": ancestor.ref,
        "version": ancestor.version.version if ancestor.version else None,
        "problem": ancestor.problem,
        "run": made.run if made else None,
        "dataset": made.dataset if made else None,
    }
