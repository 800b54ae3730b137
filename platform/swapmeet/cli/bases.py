"""`swapmeet base add|list|show|hash`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from swapmeet.cli.options import Home, Json, load_settings, show, tell
from swapmeet_registry.bases import CATALOGUE, Base, BaseLibrary
from swapmeet_registry.fingerprint import fingerprint

app = typer.Typer(help="Base models: add, list, show, hash.", no_args_is_help=True)


@app.command()
def add(
    spec: Annotated[str, typer.Argument(help="A catalogue name, a transformers folder, or a Hub id.")],
    name: Annotated[str | None, typer.Option(help="The name to give it; the folder's or the Hub's otherwise.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Make a base known, fetching it where needed."""
    base = BaseLibrary(load_settings(home=home).folder, tell).add(spec, name, revision)
    show(_described(base), f"{base.name}: {base.path}\nweights {base.fingerprint.weights}", json)


@app.command("list")
def list_(home: Home = None, json: Json = False) -> None:
    """The bases added so far, and the names that can be fetched."""
    records = BaseLibrary(load_settings(home=home).folder).records()
    known = {record.name for record in records}
    rows: list[dict[str, str | None]] = [
        {"name": record.name, "path": record.path, "source": record.source} for record in records
    ]
    rows += [{"name": n, "path": None, "source": f"catalogue:{n}"} for n in CATALOGUE if n not in known]
    text = "\n".join(f"{row['name']:24} {row['path'] or 'not fetched yet'}" for row in rows)
    show({"bases": rows}, text, json)


@app.command("show")
def show_(name: str, home: Home = None, json: Json = False) -> None:
    """One base: its folder and fingerprint. Does not fetch anything but a catalogued or Hub base named here."""
    base = BaseLibrary(load_settings(home=home).folder, tell).find(name)
    result = _described(base)
    lines = [f"{'name':14}{base.name}", f"{'path':14}{base.path}", f"{'source':14}{base.source}"]
    lines += [f"{key.replace('_', ' '):14}{value}" for key, value in result["fingerprint"].items() if key != "name"]
    show(result, "\n".join(lines), json)


@app.command("hash")
def hash_(folder: Path, json: Json = False) -> None:
    """The fingerprint of a transformers folder, read in full."""
    found = fingerprint(folder.expanduser().resolve(), folder.expanduser().resolve().name)
    show(found.model_dump(), found.weights, json)


def _described(base: Base) -> dict[str, Any]:
    return {
        "name": base.name,
        "path": str(base.path),
        "source": base.source,
        "fingerprint": base.fingerprint.model_dump(mode="json"),
    }
