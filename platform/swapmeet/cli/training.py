"""`swapmeet train`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from swapmeet.cli.options import BaseName, Home, Json, RegistryUrl, show, tell
from swapmeet.settings import load_settings
from swapmeet_training import Resources, spec_error


def train(
    data: Annotated[Path, typer.Argument(help="Training examples, JSONL: messages, or prompt and completion.")],
    base: BaseName,
    name: Annotated[str, typer.Option(help="TENANT/NAME to publish as.")],
    validation: Annotated[Path | None, typer.Option(help="Held-out examples, in the same form.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the LoRA matrices.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Scale of the update: alpha / rank.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Dropout before the LoRA matrices.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples a step.")] = None,
    gradient_accumulation: Annotated[int | None, typer.Option(help="Batches a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest example, in tokens.")] = None,
    gradient_checkpointing: Annotated[
        bool | None, typer.Option(help="Recompute activations: less memory, about a third slower.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all randomness.")] = None,
    alias: Annotated[str | None, typer.Option(help="An alias to move to the new version.")] = None,
    license: Annotated[str | None, typer.Option(help="An SPDX licence id.")] = None,  # noqa: A002 - the option's name
    tag: Annotated[list[str] | None, typer.Option(help="A word to find it by; may be given again.")] = None,
    cpus: Annotated[float, typer.Option(help="CPUs of the run; fractions share one.")] = 1.0,
    gpus: Annotated[float, typer.Option(help="GPUs of the run; fractions share one.")] = 0.0,
    follow: Annotated[bool, typer.Option("--follow", help="Print progress as it comes.")] = False,
    registry: RegistryUrl = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Fine-tune a base with QLoRA and publish the adapter."""
    from swapmeet.training import train_and_publish

    options: dict[str, Any] = {
        "name": name, "data": data, "validation": validation, "rank": rank, "alpha": alpha, "dropout": dropout,
        "epochs": epochs, "max_steps": max_steps, "batch_size": batch_size, "max_length": max_length, "seed": seed,
        "gradient_accumulation": gradient_accumulation, "learning_rate": learning_rate, "license": license,
        "gradient_checkpointing": gradient_checkpointing, "tags": tuple(tag) if tag else None,
    }  # fmt: skip
    settings = load_settings(home=home, registry=registry)
    given = {key: value for key, value in options.items() if value is not None}
    published = train_and_publish(
        settings, base, given, _resources(cpus, gpus), alias, tell if follow else lambda _: None
    )
    result = {
        "name": published.version.name,
        "version": published.version.version,
        "digest": published.version.digest,
        "seconds": round(published.seconds, 1),
        "metrics": published.metrics,
    }
    show(result, f"{published.version} {published.version.digest} after {published.seconds:.0f} s", json)


def _resources(cpus: float, gpus: float) -> Resources:
    try:
        return Resources(cpus=cpus, gpus=gpus)
    except ValidationError as error:
        raise spec_error(error) from None


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(train)
