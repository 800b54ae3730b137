"""Which registry a command is about: a server's if one is named, or one straight on its store."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from swapmeet.cli.options import load_settings, open_registry, tell

if TYPE_CHECKING:
    from swapmeet.adapter_client import RemoteAdapters
    from swapmeet_registry import Registry


@contextmanager
def adapters_at(url: str | None, registry: str | None, home: Path | None) -> "Iterator[Registry | RemoteAdapters]":
    """The registry that is meant: one given by its URL, a server's, or the one of the settings."""
    if url and registry:
        raise typer.BadParameter("A server has its own registry. Name one of both.", param_hint="--registry")
    settings = load_settings(home=home, registry=registry, url=url)
    if registry is not None or not settings.url:
        yield open_registry(settings.registry_url, settings.trust)
        return
    from swapmeet.client import Client  # takes longer to import than most commands take to run

    with Client(settings.url) as client:
        yield client.adapters(tell)
