"""What a fine-tune is made of. Defaults follow QLoRA (arXiv 2305.14314, section 4 and appendix B)."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    StringConstraints,
    ValidationError,
    model_validator,
)

from swapmeet_registry.fingerprint import Fingerprint
from swapmeet_registry.names import AdapterName
from swapmeet_registry.origin.provenance import MOST_ANSWERS, Tag
from swapmeet_training.errors import SpecError
from swapmeet_training.rules import CONTRADICTION, checked

Location = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
"""A path that means the same in a worker process, which has another working directory."""

Name = Annotated[str, AfterValidator(lambda text: str(AdapterName.parse(text)))]
Rate = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*$")]


class FineTune(BaseModel):
    """One QLoRA fine-tune: which base, which data, and how. Make one with `fine_tune()` for readable errors.

    `max_steps` ends the run early or stretches it beyond `epochs`. `warmup_ratio` is the share of the steps
    over which the learning rate rises. `eval_every` and `save_every` count optimizer steps; None means once
    per epoch. Sequences longer than `max_length` tokens are refused, never cut.

    `learning_rate` is 2e-4, and 5e-6 with `method` dpo, where it is not given. `beta` is DPO's, and its reference is
    the model that the run starts from: the base, or the base with `parent`. With `packing`, a batch's rows are made of
    as many examples as fit into `max_length`, none of which sees another; `batch_size` counts such rows.

    `init` pissa and olora start from the principal part of each weight (arXiv 2404.02948, 2406.01775). The base is
    left untouched, so what is published is a plain LoRA, of twice the rank.

    With `validation`, `keep_best` publishes the adapter of the evaluation with the lowest loss instead of the last
    one, and `early_stopping` ends the run after so many evaluations without a lower one.

    `parent` is the folder of an adapter to go on from: `rank`, `alpha`, `target_modules`, `rslora`, `dora` and the
    chat template are its, and need not be given. `chat_template` is the text of a Jinja template to train with
    instead of the base's; it is published with the adapter.

    The finished adapter answers the first `examples` prompts of `validation`, 3 unless said otherwise. They stay beside
    the adapter, for whoever trained; with `show_examples` they become part of it, for all who may ever read it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    base: Location
    base_fingerprint: Fingerprint
    data: Location
    validation: Location | None = None
    parent: Location | None = None
    chat_template: Annotated[str, StringConstraints(min_length=1)] | None = None

    method: Literal["supervised", "dpo"] = "supervised"
    beta: float = Field(0.1, gt=0, le=2)
    rank: int = Field(16, ge=1, le=512)
    alpha: Positive = 32
    dropout: Rate = 0.0
    target_modules: Literal["all-linear"] | Annotated[tuple[ModuleName, ...], Field(min_length=1)] = "all-linear"
    rslora: bool = False
    dora: bool = False
    init: Literal["default", "gaussian", "pissa", "olora"] = "default"

    epochs: float = Field(3, gt=0, le=1000)
    max_steps: int | None = Field(None, ge=1)
    batch_size: int = Field(8, ge=1, le=4096)
    gradient_accumulation: int = Field(1, ge=1, le=4096)
    learning_rate: float = Field(2e-4, gt=0, le=1)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_ratio: Rate = 0.03
    weight_decay: Rate = 0.0
    max_grad_norm: Positive = 1.0
    optimizer: Literal["paged_adamw_32bit", "paged_adamw_8bit", "adamw_torch"] = "paged_adamw_32bit"
    max_length: int = Field(1024, ge=8, le=1 << 20)
    packing: bool = False
    gradient_checkpointing: bool = True
    seed: int = Field(0, ge=0, lt=1 << 31)

    eval_every: int | None = Field(None, ge=1)
    save_every: int | None = Field(None, ge=1)
    early_stopping: int | None = Field(None, ge=1)
    keep_best: bool = True
    examples: int | None = Field(None, ge=0, le=MOST_ANSWERS)
    show_examples: bool = False
    license: str | None = None
    dataset_license: str | None = None
    tags: tuple[Tag, ...] = ()

    @model_validator(mode="wrap")
    @classmethod
    def _whole(cls, given: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        """What depends on other settings is filled in, and mistakes of all kinds are told together."""
        return checked(given, check) if isinstance(given, Mapping) else check(given)

    @property
    def own_template(self) -> str | None:
        """The chat template that is published with the adapter: none where the run uses the base's."""
        if self.chat_template is None:
            return None
        digest = hashlib.sha256(self.chat_template.encode()).hexdigest()
        return None if self.base_fingerprint.chat_template == f"sha256:{digest}" else self.chat_template

    def settings(self) -> dict[str, JsonValue]:
        """What a reader of the adapter needs to train it again: no path of this machine, no name, no long text."""
        files = {"base", "data", "validation", "parent", "chat_template"}
        elsewhere = {"name", "base_fingerprint", "license", "dataset_license", "tags", "examples", "show_examples"}
        return self.model_dump(mode="json", exclude=files | elsewhere)


class Resources(BaseModel):
    """What one run may use. Fractions share a CPU or a GPU between runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpus: Positive = 1.0
    gpus: float = Field(0.0, ge=0, le=1)

    @property
    def threads(self) -> int:
        """Threads torch may compute with: whole CPUs, at least one."""
        return max(1, int(self.cpus))

    @property
    def device(self) -> str:
        """The device a run with these resources computes on."""
        return "cuda:0" if self.gpus else "cpu"


def fine_tune(settings: Mapping[str, Any]) -> FineTune:
    """A fine-tune from settings that somebody typed.

    Raises:
        SpecError: lists every mistake, each in one sentence.
    """
    try:
        return FineTune(**settings)
    except ValidationError as error:
        raise spec_error(error) from None


def spec_error(error: ValidationError) -> SpecError:
    """Pydantic's findings as one error of ours, a sentence per mistake."""
    sentences: dict[str, None] = {}
    for finding in error.errors():
        field = str(finding["loc"][0]) if finding["loc"] else "settings"
        sentences[_sentence(field, finding)] = None
    return SpecError(" ".join(sentences))


def _sentence(field: str, finding: Any) -> str:
    kind, given = finding["type"], finding["input"]
    if kind == "extra_forbidden":
        return f"{field} is not a setting; the settings are {', '.join(FineTune.model_fields)}."
    if kind == "missing":
        return f"{field} is missing."
    if kind == "value_error":
        return str(finding["ctx"]["error"])
    if kind == CONTRADICTION:
        return str(finding["msg"])
    if field == "target_modules":
        return f"target_modules is {given!r} but should be 'all-linear' or a list of module names such as q_proj."
    wanted = finding["msg"].removeprefix("Input ").removeprefix("should be ")
    return f"{field} is {given!r} but should be {wanted}."
