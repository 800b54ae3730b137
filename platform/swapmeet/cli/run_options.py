"""The options of a run, which `swapmeet train` and `swapmeet plan` share."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from pydantic import ValidationError

from swapmeet.cli.options import BaseName, Home, RegistryUrl
from swapmeet_training import Resources, spec_error


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What a run's command line may say; None is what was not said, and left to `FineTune`."""

    data: Annotated[Path, typer.Argument(help="Training examples, JSONL: messages, or prompt and completion.")]
    base: BaseName
    name: Annotated[str | None, typer.Option(help="TENANT/NAME to publish as.")] = None
    validation: Annotated[Path | None, typer.Option(help="Held-out examples, in the same form.")] = None
    rank: Annotated[int | None, typer.Option(help="Rank of the LoRA matrices.")] = None
    alpha: Annotated[float | None, typer.Option(help="Scale of the update: alpha / rank.")] = None
    dropout: Annotated[float | None, typer.Option(help="Dropout before the LoRA matrices.")] = None
    target: Annotated[
        list[str] | None, typer.Option(help="A linear layer to adapt, such as q_proj; may be given again.")
    ] = None
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = None
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of epochs.")] = None
    batch_size: Annotated[int | None, typer.Option(help="Examples a step.")] = None
    gradient_accumulation: Annotated[int | None, typer.Option(help="Batches a step.")] = None
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None
    optimizer: Annotated[str | None, typer.Option(help="paged_adamw_32bit, paged_adamw_8bit or adamw_torch.")] = None
    max_length: Annotated[int | None, typer.Option(help="Longest example, in tokens.")] = None
    gradient_checkpointing: Annotated[
        bool | None, typer.Option(help="Recompute activations: less memory, about a third slower.")
    ] = None
    seed: Annotated[int | None, typer.Option(help="Seed of all randomness.")] = None
    alias: Annotated[str | None, typer.Option(help="An alias to move to the new version.")] = None
    license: Annotated[str | None, typer.Option(help="An SPDX licence id.")] = None
    tag: Annotated[list[str] | None, typer.Option(help="A word to find it by; may be given again.")] = None
    cpus: Annotated[float, typer.Option(help="CPUs of the run; fractions share one.")] = 1.0
    gpus: Annotated[float, typer.Option(help="GPUs of the run; fractions share one.")] = 0.0
    follow: Annotated[bool, typer.Option("--follow", help="Print progress as it comes.")] = False
    registry: RegistryUrl = None
    home: Home = None

    def settings(self) -> dict[str, Any]:
        """Those of `FineTune` that were given."""
        other = {"base", "alias", "cpus", "gpus", "follow", "registry", "home", "tag", "target"}
        said = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in other}
        said |= {"tags": self.tag and tuple(self.tag), "target_modules": self.target and tuple(self.target)}
        return {name: value for name, value in said.items() if value is not None}

    def resources(self) -> Resources:
        """What the run may use.

        Raises:
            SpecError: a figure is wrong.
        """
        try:
            return Resources(cpus=self.cpus, gpus=self.gpus)
        except ValidationError as error:
            raise spec_error(error) from None


def takes_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command whose first parameter is a `RunOptions`, with an option of its own for each field."""

    @functools.wraps(command)
    def called(**given: Any) -> None:
        options = RunOptions(**{field.name: given.pop(field.name) for field in fields(RunOptions)})
        command(options, **given)

    first, *own = inspect.signature(command, eval_str=True).parameters.values()
    hints = get_type_hints(RunOptions, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(RunOptions)
    ]
    assert first.annotation is RunOptions
    parameters = [*shared, *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own)]
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
    called.__annotations__ = {one.name: one.annotation for one in parameters}
    del called.__wrapped__  # or typer would read the command's own
    return called
