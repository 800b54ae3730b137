"""`swapmeet export-oci`: adapters in the forms of others."""

from pathlib import Path
from typing import Annotated

import typer

from swapmeet.cli.adapters import Ref
from swapmeet.cli.adapters_opened import adapters_at
from swapmeet.cli.options import Home, Json, RegistryUrl, ServerUrl, show


def export_oci(
    reference: Ref,
    folder: Annotated[Path, typer.Argument(help="A folder to make.")],
    url: ServerUrl = None,
    registry: RegistryUrl = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Write an adapter as an OCI image layout, which skopeo and oras copy to any registry of images."""
    from swapmeet_registry.copies import oci

    with adapters_at(url, registry, home) as adapters:
        done = oci.export_oci(adapters, reference, folder)
    version = done.version
    result = {"name": version.name, "version": version.version, "digest": version.digest}
    result |= {"manifest": done.manifest, "tag": done.tag, "folder": str(folder)}
    show(result, f"{version} {version.digest} in {folder}: copy it from oci:{folder}:{done.tag}", json)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("export-oci")(export_oci)
