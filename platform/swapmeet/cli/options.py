"""Options that several commands share, and how results are printed."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]
Home = Annotated[Path | None, typer.Option("--home", help="Where Swapmeet keeps its files (SWAPMEET_HOME).")]
RegistryUrl = Annotated[
    str | None, typer.Option("--registry", help="Where adapters are kept: file:///DIR or s3://BUCKET/PREFIX.")
]
BaseName = Annotated[str, typer.Option("--base", help="A base: short name, transformers folder, or Hub id.")]


def show(result: dict[str, Any], text: str, as_json: bool) -> None:
    """Print a result: its text for people, or all of it as one JSON line."""
    print(json.dumps(result) if as_json else text, flush=True)


def tell(line: str) -> None:
    """A line about long work, on standard error so that results stay clean."""
    print(line, file=sys.stderr, flush=True)
