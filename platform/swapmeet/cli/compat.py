"""`swapmeet export-oci`: adapters in the forms of others."""

from pathlib import Path
from typing import Annotated

import typer

from swapmeet.cli.adapters import Ref
from swapmeet.cli.options import Home, Json, RegistryUrl, load_settings, open_registry, show


def export_oci(
    reference: Ref,
    folder: Annotated[Path, typer.Argument(help="A folder to make.")],
    registry: RegistryUrl = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Write an adapter as an OCI image layout, which skopeo and oras copy to any registry of images."""
    from swapmeet_registry.copies import oci

    settings = load_settings(home=home, registry=registry)
    done = oci.export_oci(open_registry(settings.registry_url, settings.trust), reference, folder)
    version = done.version
    result = {"name": version.name, "version": version.version, "digest": version.digest}
    result |= {"manifest": done.manifest, "tag": done.tag, "folder": str(folder)}
    show(result, f"{version} {version.digest} in {folder}: copy it from oci:{folder}:{done.tag}", json)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("export-oci")(export_oci)
