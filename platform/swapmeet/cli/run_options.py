"""The options of a run, which `swapmeet train` and `swapmeet plan` share."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from pydantic import ValidationError

from swapmeet.cli.options import Home, RegistryUrl, read_template
from swapmeet.settings import load_settings
from swapmeet_training import Resources, spec_error

NOT_OF_THE_RUN = {"file", "base", "alias", "cpus", "gpus", "follow", "registry", "home", "url", "local"}
OF_THE_QUEUE = ("metadata", "priority", "deadline")
"""Options that mean something to a server only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What a run's command line may say; None is what was not said, and left to a file or to defaults."""

    data: Annotated[
        Path | None, typer.Argument(help="Training examples: JSONL of messages, prompt and completion, or preferences.")
    ] = None
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="A run in YAML, as a job's request has it; options override it.")
    ] = None
    base: Annotated[
        str | None,
        typer.Option(help="A base: short name, transformers folder, or Hub id; or TENANT/NAME:3 to go on from."),
    ] = None
    name: Annotated[str | None, typer.Option(help="TENANT/NAME to publish as.")] = None
    validation: Annotated[Path | None, typer.Option(help="Held-out examples, in the same form.")] = None
    method: Annotated[str | None, typer.Option(help="supervised, or dpo to learn from preferences.")] = None
    beta: Annotated[float | None, typer.Option(help="How much the reference counts, with dpo.")] = None
    rank: Annotated[int | None, typer.Option(help="Rank of the LoRA matrices.")] = None
    alpha: Annotated[float | None, typer.Option(help="Scale of the update: alpha / rank.")] = None
    dropout: Annotated[float | None, typer.Option(help="Dropout before the LoRA matrices.")] = None
    target: Annotated[
        list[str] | None, typer.Option(help="A linear layer to adapt, such as q_proj; may be given again.")
    ] = None
    rslora: Annotated[bool | None, typer.Option(help="Scale by alpha / sqrt(rank) instead.")] = None
    dora: Annotated[bool | None, typer.Option(help="Learn lengths and directions of the weights apart.")] = None
    init: Annotated[str | None, typer.Option(help="default, gaussian, pissa or olora.")] = None
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = None
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of epochs.")] = None
    batch_size: Annotated[int | None, typer.Option(help="Examples a batch.")] = None
    gradient_accumulation: Annotated[int | None, typer.Option(help="Batches a step.")] = None
    packing: Annotated[bool | None, typer.Option(help="Put several short examples into one row.")] = None
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None
    schedule: Annotated[str | None, typer.Option(help="Of the learning rate: constant, linear or cosine.")] = None
    warmup_ratio: Annotated[float | None, typer.Option(help="Share of the steps over which the rate rises.")] = None
    weight_decay: Annotated[float | None, typer.Option(help="Decay of the LoRA matrices.")] = None
    max_grad_norm: Annotated[float | None, typer.Option(help="Longer gradients are scaled down to it.")] = None
    optimizer: Annotated[str | None, typer.Option(help="paged_adamw_32bit, paged_adamw_8bit or adamw_torch.")] = None
    max_length: Annotated[int | None, typer.Option(help="Longest example, in tokens.")] = None
    gradient_checkpointing: Annotated[
        bool | None, typer.Option(help="Recompute activations: less memory, about a third slower.")
    ] = None
    chat_template: Annotated[Path | None, typer.Option(help="A Jinja file to use instead of the base's.")] = None
    seed: Annotated[int | None, typer.Option(help="Seed of all randomness.")] = None
    eval_every: Annotated[int | None, typer.Option(help="Steps between evaluations; once an epoch if not given.")] = (
        None
    )
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints; once an epoch if not given.")] = (
        None
    )
    early_stopping: Annotated[int | None, typer.Option(help="End after so many evaluations without improvement.")] = (
        None
    )
    keep_best: Annotated[bool | None, typer.Option(help="Publish the best evaluation's adapter, not the last.")] = None
    examples: Annotated[
        int | None, typer.Option(help="So many prompts of the held-out examples are answered at the end, for you; 3.")
    ] = None
    show_examples: Annotated[
        bool | None, typer.Option(help="Put these prompts and answers on the card, for all who may read the adapter.")
    ] = None
    alias: Annotated[str | None, typer.Option(help="An alias to move to the new version.")] = None
    license: Annotated[str | None, typer.Option(help="An SPDX licence id; the base's where none is given.")] = None
    dataset_license: Annotated[str | None, typer.Option(help="The training data's licence.")] = None
    tag: Annotated[list[str] | None, typer.Option(help="A word to find it by; may be given again.")] = None
    metadata: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE that the server keeps with the job; may be given again.")
    ] = None
    priority: Annotated[int | None, typer.Option(help="In a server's queue, -100 to 100.")] = None
    deadline: Annotated[str | None, typer.Option(help="When it is wanted, such as 2027-01-06T18:00:00Z.")] = None
    cpus: Annotated[float | None, typer.Option(help="CPUs of the run; fractions share one.")] = None
    gpus: Annotated[float | None, typer.Option(help="GPUs of the run; fractions share one.")] = None
    follow: Annotated[bool, typer.Option("--follow", help="Print progress as it comes.")] = False
    url: Annotated[str | None, typer.Option(help="The server to train on (SWAPMEET_URL).")] = None
    local: Annotated[bool, typer.Option("--local", help="Train here, whatever SWAPMEET_URL says.")] = False
    registry: RegistryUrl = None
    home: Home = None

    def said(self) -> dict[str, Any]:
        """What was given, by the options' names."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in given.items() if value is not None and value != []}

    def settings(self) -> dict[str, Any]:
        """Those of `FineTune` that were given.

        Raises:
            DataError: the chat template can not be read.
        """
        other = {*NOT_OF_THE_RUN, *OF_THE_QUEUE, "tag", "target", "chat_template"}
        found = {name: value for name, value in self.said().items() if name not in other}
        found |= {
            "tags": self.tag and tuple(self.tag),
            "target_modules": self.modules(),
            "chat_template": read_template(self.chat_template),
        }
        return {name: value for name, value in found.items() if value is not None}

    def modules(self) -> str | tuple[str, ...] | None:
        """What to adapt."""
        return "all-linear" if self.target == ["all-linear"] else (tuple(self.target) if self.target else None)

    def resources(self) -> Resources:
        """What the run may use.

        Raises:
            SpecError: a figure is wrong.
        """
        given = {"cpus": self.cpus, "gpus": self.gpus}
        try:
            return Resources(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            raise spec_error(error) from None


def takes_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command whose first parameter is a `RunOptions`, with an option of its own for each field."""

    @functools.wraps(command)
    def called(**given: Any) -> None:
        options = RunOptions(**{field.name: given.pop(field.name) for field in fields(RunOptions)})
        _require_enough(options)
        command(options, **given)

    first, *own = inspect.signature(command, eval_str=True).parameters.values()
    hints = get_type_hints(RunOptions, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(RunOptions)
    ]
    assert first.annotation is RunOptions
    parameters = [*shared, *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own)]
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
    called.__annotations__ = {one.name: one.annotation for one in parameters}
    del called.__wrapped__  # or typer would read the command's own
    return called


def server_of(options: RunOptions) -> str:
    """The URL of the server that is to be asked; none where this machine is."""
    return "" if options.local else load_settings(url=options.url, home=options.home).url


def _require_enough(options: RunOptions) -> None:
    """Wrong usage is told before anything is read."""
    if options.local and options.url:
        raise typer.BadParameter("--local trains here, and --url there. Keep one of them.", param_hint="--url")
    if options.file is None and (options.data is None or options.base is None):
        missing = [name for name, value in (("DATA", options.data), ("--base", options.base)) if value is None]
        raise typer.BadParameter(f"Give {' and '.join(missing)}, or a run's file: -f run.yaml.", param_hint=missing[0])
