"""What a fine-tune is made of. Defaults follow QLoRA (arXiv 2305.14314, section 4 and appendix B)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from swapmeet_registry.fingerprint import Fingerprint
from swapmeet_registry.names import AdapterName
from swapmeet_registry.provenance import Tag
from swapmeet_training.errors import SpecError

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
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    base: Location
    base_fingerprint: Fingerprint
    data: Location
    validation: Location | None = None
    chat_template: str | None = None

    rank: int = Field(16, ge=1, le=512)
    alpha: Positive = 32
    dropout: Rate = 0.0
    target_modules: Literal["all-linear"] | Annotated[tuple[ModuleName, ...], Field(min_length=1)] = "all-linear"

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
    gradient_checkpointing: bool = True
    seed: int = Field(0, ge=0, lt=1 << 31)

    eval_every: int | None = Field(None, ge=1)
    save_every: int | None = Field(None, ge=1)
    license: str | None = None
    tags: tuple[Tag, ...] = ()

    def settings(self) -> dict[str, JsonValue]:
        """What a reader of the adapter needs to train it again: no path of this machine, no name."""
        private = {"name", "base", "base_fingerprint", "data", "validation", "license", "tags"}
        return self.model_dump(mode="json", exclude=private)


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
    if field == "target_modules":
        return f"target_modules is {given!r} but should be 'all-linear' or a list of module names such as q_proj."
    wanted = finding["msg"].removeprefix("Input ").removeprefix("should be ")
    return f"{field} is {given!r} but should be {wanted}."
