"""Options that several commands share, and how results are printed."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from swapmeet.settings import Settings
    from swapmeet_registry import Registry, Trust

Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]
Home = Annotated[Path | None, typer.Option("--home", help="Where Swapmeet keeps its files (SWAPMEET_HOME).")]
RegistryUrl = Annotated[
    str | None, typer.Option("--registry", help="Where adapters are kept: file:///DIR, s3://BUCKET/PREFIX or hf://ORG.")
]
ServerUrl = Annotated[str | None, typer.Option("--url", help="A server to ask instead of a store (SWAPMEET_URL).")]
BaseName = Annotated[str, typer.Option("--base", help="A base: short name, transformers folder, or Hub id.")]


def load_settings(**options: Any) -> "Settings":
    """As `swapmeet.settings.load_settings`, which takes longer to import than a command's help should take."""
    from swapmeet.settings import load_settings

    return load_settings(**options)


def open_registry(url: str, trust: "Trust | None" = None) -> "Registry":
    """A `Registry`, imported as late as the settings."""
    from swapmeet_registry import Registry

    return Registry(url) if trust is None else Registry(url, trust)


def not_empty(text: str) -> str:
    """An argument that names one thing, where nothing would be the path of all of them."""
    if not text.strip():
        raise typer.BadParameter("It is empty, as a variable may be that was not set. Name one.")
    return text


def show(result: dict[str, Any], text: str, as_json: bool) -> None:
    """Print a result: its text for people, or all of it as one JSON line."""
    print(json.dumps(result) if as_json else text, flush=True)


def tell(line: str) -> None:
    """A line about long work, on standard error so that results stay clean."""
    print(line, file=sys.stderr, flush=True)


def read_template(path: Path | None) -> str | None:
    """The text of a chat template, where one is named.

    Raises:
        DataError: it can not be read.
    """
    from swapmeet_training.errors import DataError

    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can not be read as a chat template ({error}). Name a Jinja file.") from error
