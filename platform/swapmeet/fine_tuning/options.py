"""Our own options of a job, under `lora`: what OpenAI's API has no words for. Defaults are those of `FineTune`."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, ValidationInfo, field_validator

from swapmeet.fine_tuning.fields import Label, Modules, Positive, Rate, Strict, Text, unfitting
from swapmeet_registry import AdapterName, RegistryError
from swapmeet_registry.origin.provenance import MOST_ANSWERS

HIGHEST_PRIORITY = 100
LONGEST_TEMPLATE = 256 << 10
"""Characters of a chat template; serving takes no more bytes."""


class RunResources(Strict):
    """What one run may use; fractions share a CPU or a GPU. `memory` is in bytes. The plan says what is not given."""

    cpus: Annotated[float, Field(gt=0, le=1024)] | None = None
    gpus: Annotated[float, Field(ge=0, le=1)] | None = None
    memory: Annotated[int, Field(ge=64 << 20, le=1 << 44)] | None = None


class LoraOptions(Strict):
    """How to train, where to and when.

    `alpha` is twice the rank unless given. `learning_rate` is an absolute rate, instead of a multiplier. A step learns
    from `batch_size` examples, `gradient_accumulation` times a part of them. `max_steps` ends the run early or
    stretches it. `eval_every` and `save_every` count steps; None means once per epoch. `early_stopping` is after how
    many evaluations without improvement to end. `name` is the adapter to publish as, `TENANT/NAME` or `NAME`.

    The finished adapter answers the first `examples` prompts of the validation file, 3 unless said otherwise. Prompts
    and answers are the tenant's alone to see; with `show_examples` they become part of the adapter and its card, for
    all who may ever read it.
    """

    rank: Annotated[int, Field(ge=1, le=512)] | None = None
    alpha: Positive | None = None
    dropout: Rate = 0.0
    target_modules: Modules | None = None
    rslora: bool | None = None
    dora: bool | None = None
    init: Literal["default", "gaussian", "pissa", "olora"] = "default"

    packing: bool = False
    max_length: Annotated[int, Field(ge=8, le=1 << 20)] = 1024
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_ratio: Rate = 0.03
    weight_decay: Rate = 0.0
    max_grad_norm: Positive = 1.0
    optimizer: Literal["paged_adamw_32bit", "paged_adamw_8bit", "adamw_torch"] = "paged_adamw_32bit"
    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    gradient_accumulation: Annotated[int, Field(ge=1, le=256)] = 1
    gradient_checkpointing: bool = True

    eval_every: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    save_every: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    early_stopping: Annotated[int, Field(ge=1, le=1000)] | None = None
    keep_best: bool = True
    examples: Annotated[int, Field(ge=0, le=MOST_ANSWERS)] | None = None
    show_examples: bool = False
    chat_template: Annotated[Text, Field(min_length=1, max_length=LONGEST_TEMPLATE)] | None = None

    name: Annotated[Text, Field(min_length=1, max_length=130)] | None = None
    license: Annotated[Text, Field(min_length=1, max_length=100)] | None = None
    dataset_license: Annotated[Text, Field(min_length=1, max_length=100)] | None = None
    tags: Annotated[list[Label], Field(max_length=32)] = Field(default_factory=list)
    resources: RunResources = RunResources()
    priority: Annotated[int, Field(ge=-HIGHEST_PRIORITY, le=HIGHEST_PRIORITY)] = 0
    deadline: Annotated[AwareDatetime, Field(strict=False)] | None = None

    @field_validator("init")
    @classmethod
    def _continues_nothing(cls, init: str, info: ValidationInfo) -> str:
        if init in ("pissa", "olora") and info.data.get("dora"):
            raise unfitting(f"{init} sets the base's weights anew, which dora measures. Choose one of both.")
        return init

    @field_validator("target_modules")
    @classmethod
    def _each_once(cls, modules: "str | list[str] | None") -> "str | list[str] | None":
        if isinstance(modules, list) and len(set(modules)) < len(modules):
            raise unfitting("names a module twice. Name each once.")
        return modules

    @field_validator("name")
    @classmethod
    def _nameable(cls, name: str | None) -> str | None:
        try:
            if name is not None:
                AdapterName.parse(name if "/" in name else f"tenant/{name}")
        except RegistryError as error:
            raise unfitting(str(error)) from error
        return name

    @field_validator("deadline")
    @classmethod
    def _in_future(cls, deadline: datetime | None) -> datetime | None:
        if deadline is not None and deadline <= datetime.now(UTC):
            raise unfitting("is over. Give a moment to come, with its zone, such as 2027-01-06T18:00:00Z.")
        return deadline
