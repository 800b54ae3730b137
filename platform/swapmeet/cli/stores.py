"""`swapmeet store …`: where adapters are kept, looked at and kept in order."""

from dataclasses import asdict
from typing import Annotated

import typer

from swapmeet.cli.adapters_opened import store_of
from swapmeet.cli.options import Home, Json, RegistryUrl, show, tell
from swapmeet.cli.tables import duration, plain
from swapmeet_registry.stores import open_store
from swapmeet_registry.stores.probing import Check, probe
from swapmeet_registry.stores.probing.probe import ROUNDS, THREADS
from swapmeet_registry.upkeep.collection import AGE, collect


def probe_store(
    url: Annotated[str, typer.Argument(help="file:///DIR, s3://BUCKET/PREFIX or hf://ORG.")],
    rounds: Annotated[int, typer.Option(min=1, max=100_000, help="How often writers race.")] = ROUNDS,
    threads: Annotated[int, typer.Option(min=2, max=64, help="How many writers race.")] = THREADS,
    json: Json = False,
) -> None:
    """Try whether a place keeps what a registry must rely on, before it is trusted; nothing stays of it."""
    found = probe(url, rounds=rounds, threads=threads, tell=lambda check: tell(_line(check)))
    verdict = "is fit for a registry" if found.certified else "must not be used for a registry: it would lose adapters"
    show(found.as_dict(), f"{plain(url)} {verdict}.", json)
    if not found.certified:
        raise typer.Exit(1)


def collect_garbage(
    age: Annotated[float, typer.Option(min=0, help="Seconds; what is younger stays.")] = AGE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    registry: RegistryUrl = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Delete what no version needs; publishers and readers may be at work."""
    store = open_store(store_of(registry, home))
    collected = collect(store, age=age, dry_run=dry_run)
    swept = 0 if dry_run else store.sweep(max(age, AGE))
    done = "would go" if dry_run else "went"
    text = f"{collected.objects} of {collected.examined} objects {done}, {collected.bytes:,} bytes"
    text += f"; {swept} unfinished writes were given up" if swept else ""
    show({**asdict(collected), "unfinished": swept, "dry_run": dry_run}, f"{text}.", json)


def _line(check: Check) -> str:
    seen = f"  {plain(check.seen)}" if check.seen else ""
    return f"{check.outcome:8} {check.name:32} {duration(check.seconds) if check.seconds >= 1 else ''}{seen}".rstrip()


def register(group: typer.Typer) -> None:
    """Add the commands to `swapmeet store`."""
    group.command("probe")(probe_store)
    group.command("gc")(collect_garbage)
