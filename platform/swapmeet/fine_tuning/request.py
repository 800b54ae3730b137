"""What a caller asks for: OpenAI's request of a job, with our own options under `lora`.

The API, the command line and the YAML file of `swapmeet train -f` all read it with `parse_request`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator

from swapmeet.fine_tuning.fields import AUTO, BatchSize, Beta, Epochs, Multiplier, Strict, Text, WithoutNulls, unfitting
from swapmeet.fine_tuning.mistakes import refusal
from swapmeet.fine_tuning.options import LoraOptions
from swapmeet.integrations.request import MOST, Integration

MOST_METADATA, LONGEST_KEY, LONGEST_VALUE = 16, 64, 512
Name = Annotated[Text, Field(min_length=1, max_length=256)]
FileId = Annotated[Text, Field(min_length=1, max_length=64)]


class Hyperparameters(Strict):
    """OpenAI's, of a supervised run."""

    n_epochs: Epochs = AUTO
    batch_size: BatchSize = AUTO
    learning_rate_multiplier: Multiplier = AUTO


class DpoHyperparameters(Hyperparameters):
    """OpenAI's, of a run on preferences; `beta` is how much the reference counts."""

    beta: Beta = AUTO


class Supervised(Strict):
    """Learn what the assistant says."""

    hyperparameters: Annotated[Hyperparameters, WithoutNulls] = Hyperparameters()


class Dpo(Strict):
    """Learn which of two answers is preferred."""

    hyperparameters: Annotated[DpoHyperparameters, WithoutNulls] = DpoHyperparameters()


class Method(Strict):
    """How to learn: `type`, and its settings under the same name."""

    type: Literal["supervised", "dpo"]
    supervised: Annotated[Supervised, WithoutNulls] | None = None
    dpo: Annotated[Dpo, WithoutNulls] | None = None

    @field_validator("supervised", "dpo")
    @classmethod
    def _of_the_type(cls, settings: Any, info: ValidationInfo) -> Any:
        if settings is not None and info.data.get("type", info.field_name) != info.field_name:
            raise unfitting(f"does not go with the type {info.data['type']!r}. Leave it out, or change the type.")
        return settings


class JobRequest(Strict):
    """Body of `POST /v1/fine_tuning/jobs`. `hyperparameters` is OpenAI's older place for those of `method`."""

    model: Annotated[Text, Field(min_length=1, max_length=300)]
    training_file: FileId
    validation_file: FileId | None = None
    suffix: Annotated[Text, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    metadata: dict[Text, Annotated[Text, Field(max_length=LONGEST_VALUE)]] = Field(default_factory=dict)
    integrations: Annotated[list[Integration], Field(max_length=MOST)] = Field(default_factory=list)
    method: Annotated[Method, WithoutNulls] | None = None
    hyperparameters: Annotated[Hyperparameters, WithoutNulls] | None = None
    lora: Annotated[LoraOptions, WithoutNulls] = LoraOptions()

    @property
    def kind(self) -> Literal["supervised", "dpo"]:
        """The method, which is supervised unless another is asked for."""
        return self.method.type if self.method else "supervised"

    @property
    def asked(self) -> dict[str, Any]:
        """Hyper-parameters as asked for, by OpenAI's names; `auto` where the data decide."""
        if self.hyperparameters is not None:
            return self.hyperparameters.model_dump()
        if self.kind == "dpo":
            return ((self.method and self.method.dpo) or Dpo()).hyperparameters.model_dump()
        return ((self.method and self.method.supervised) or Supervised()).hyperparameters.model_dump()

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return {name: item for name, item in value.items() if item is not None} if isinstance(value, dict) else value

    @field_validator("validation_file")
    @classmethod
    def _another_file(cls, file: str | None, info: ValidationInfo) -> str | None:
        if file is not None and file == info.data.get("training_file"):
            raise unfitting("is the training file. Hold some examples out, in a file of their own.")
        return file

    @field_validator("metadata")
    @classmethod
    def _few(cls, metadata: dict[str, str]) -> dict[str, str]:
        if len(metadata) > MOST_METADATA:
            raise unfitting(f"has {len(metadata)} pairs, where {MOST_METADATA} are the most.")
        if longest := max((key for key in metadata if not 1 <= len(key) <= LONGEST_KEY), key=len, default=None):
            raise unfitting(f"has the key {longest[:20]}… of {len(longest)} characters; 1 to {LONGEST_KEY} may be.")
        if "" in metadata:
            raise unfitting("has an empty key. Name every pair.")
        return metadata

    @field_validator("method", mode="before")
    @classmethod
    def _no_reinforcement(cls, method: Any) -> Any:
        if isinstance(method, dict) and (method.get("type") == "reinforcement" or method.get("reinforcement")):
            raise unfitting("reinforcement is not offered here. Use supervised or dpo.")
        return method

    @field_validator("hyperparameters")
    @classmethod
    def _one_place(cls, older: Hyperparameters | None, info: ValidationInfo) -> Hyperparameters | None:
        if older is not None and info.data.get("method") is not None:
            raise unfitting("is the older place of what method has. Give it under method alone.")
        return older

    @field_validator("lora")
    @classmethod
    def _fits_the_rest(cls, lora: LoraOptions, info: ValidationInfo) -> LoraOptions:
        if found := " ".join(_conflicts(lora, info.data)):
            raise unfitting(found)
        return lora


def _conflicts(lora: LoraOptions, others: Mapping[str, Any]) -> list[str]:
    """What does not go together; fields that are wrong by themselves are missing among `others`."""
    found = []
    method, older = others.get("method"), others.get("hyperparameters")
    settings = (getattr(method, method.type) if method else None) or Supervised()
    hyperparameters = older or settings.hyperparameters
    if "validation_file" in others and others["validation_file"] is None:
        lacking = [name for name in ("early_stopping", "eval_every") if getattr(lora, name) is not None]
        lacking += [name for name in ("examples", "show_examples") if getattr(lora, name)]
        found += [f"{name} needs a validation_file. Give one, or leave {name} out." for name in lacking]
    if lora.show_examples and lora.examples == 0:
        found.append("show_examples shows none where examples is 0. Raise examples, or leave show_examples out.")
    if lora.learning_rate is not None and hyperparameters.learning_rate_multiplier != AUTO:
        found.append("learning_rate and learning_rate_multiplier are both given. Keep one of them.")
    batch, parts = hyperparameters.batch_size, lora.gradient_accumulation
    if batch != AUTO and batch % parts:
        found.append(f"gradient_accumulation {parts} does not divide the batch_size {batch}. Make it a divisor.")
    if lora.packing and method and method.type == "dpo":
        found.append("packing joins examples, and dpo compares them in pairs. Leave one of them out.")
    if lora.name is not None and others.get("suffix") is not None:
        found.append("name and suffix both name the adapter. Keep one of them.")
    return found


def parse_request(given: Mapping[str, Any]) -> JobRequest:
    """A request from what somebody wrote as JSON or YAML.

    Raises:
        RequestRefused: every mistake, each with the path of its field and what to do.
    """
    try:
        return JobRequest.model_validate(dict(given))
    except ValidationError as error:
        raise refusal(error, _FIELDS) from None


def fields_of(model: type[BaseModel], path: str = "") -> dict[str, tuple[str, ...]]:
    """The fields of a model and of the models in it, by path."""
    found = {path: tuple(model.model_fields)}
    for name, field in model.model_fields.items():
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            inner = getattr(inner, "__origin__", inner)  # out of Annotated
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found |= fields_of(inner, f"{path}.{name}".lstrip("."))
    return found


_FIELDS = fields_of(JobRequest)
