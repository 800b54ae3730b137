"""Which registry a command is about: a server's if one is named, or one straight on its store."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from swapmeet.cli.options import load_settings, open_registry, tell
from swapmeet.errors import RequestRefused

if TYPE_CHECKING:
    from swapmeet.adapter_client import RemoteAdapters
    from swapmeet_registry import Registry, Trust


@contextmanager
def adapters_at(
    url: str | None, registry: str | None, home: Path | None, trust: "Trust | None" = None
) -> "Iterator[Registry | RemoteAdapters]":
    """The registry that is meant: one given by its URL, a server's, or the one of the settings.

    Args:
        url: a server's, as `--url` has it.
        registry: a store's, as `--registry` has it.
        home: as `--home` has it.
        trust: whose signatures are asked for, instead of what the settings say.
    """
    if url and registry:
        raise typer.BadParameter("A server has its own registry. Name one of both.", param_hint="--registry")
    settings = load_settings(home=home, registry=registry, url=url)
    if registry is not None or not settings.url:
        yield open_registry(settings.registry_url, trust or settings.trust)
        return
    from swapmeet.client import Client  # takes longer to import than most commands take to run

    with Client(settings.url) as client:
        yield client.adapters(tell, trust)


def store_of(registry: str | None, home: Path | None) -> str:
    """The URL of the store that a command is about which no server does: never another than was meant.

    Raises:
        RequestRefused: a server is named, and no store: the one in the home would be none of the server's.
    """
    settings = load_settings(home=home, registry=registry)
    if registry is None and settings.url:
        if not settings.registry:
            raise RequestRefused(
                f"This works on a store itself, and not through {settings.url}, which SWAPMEET_URL names. Name the "
                f"store, such as --registry {settings.registry_url}, or unset SWAPMEET_URL."
            )
        tell(f"On the store {settings.registry_url} itself, and not through {settings.url}.")
    return settings.registry_url
