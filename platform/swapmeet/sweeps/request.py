"""What a caller asks for: a job's request, with `sweep` beside its fields, which says what to try."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator

from swapmeet.files.rules import shortened
from swapmeet.fine_tuning.fields import Strict, Text, WithoutNulls, unfitting, without_nulls
from swapmeet.fine_tuning.mistakes import Mistake, mistakes_of, refusal
from swapmeet.fine_tuning.request import DpoHyperparameters, JobRequest, fields_of
from swapmeet.sweeps.mistakes import of_configurations

MOST_RUNS = 100
METRICS = ("valid_loss", "valid_accuracy", "train_loss")
"""What the best can be best by: on the validation file, or the mean over the last epoch's steps."""
HIGHER_IS_BETTER = {"valid_accuracy"}
HYPERPARAMETERS = tuple(DpoHyperparameters.model_fields)
LORA = (
    *("rank", "alpha", "dropout", "target_modules", "rslora", "dora", "init", "packing", "max_length"),
    *("learning_rate", "schedule", "warmup_ratio", "weight_decay", "max_grad_norm", "optimizer", "max_steps"),
    *("gradient_accumulation", "gradient_checkpointing", "early_stopping"),
)
OPTIONS = (*HYPERPARAMETERS, *LORA, "seed")
"""What can be tried, by the names that a request has."""

Configuration = Mapping[str, Any]


def _simple(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return value
    raise unfitting("is no value of an option. Write a number, a word, true, false, null, or a list of names.")


Value = Annotated[Any, AfterValidator(_simple)]
Values = Annotated[list[Value], Field(min_length=1, max_length=50)]


class SweepOptions(Strict):
    """What to try: every combination of the values in `grid`, or each of the `configurations`.

    Both give options by their names in a job's request, without what they stand under: `rank`, `n_epochs`. What is
    not tried is as the rest of the request has it. Of more than `max_runs`, so many are drawn at random, by `seed`.
    `metric` is what the best is best by.
    """

    grid: Annotated[dict[Text, Values], Field(min_length=1, max_length=10)] | None = None
    configurations: Annotated[
        Annotated[list[dict[Text, Value]], Field(min_length=1, max_length=1000)] | None, Field(validate_default=True)
    ] = None
    metric: Annotated[Literal["valid_loss", "valid_accuracy", "train_loss"], Field(validate_default=True)] = (
        "valid_loss"
    )
    max_runs: Annotated[Annotated[int, Field(ge=1, le=MOST_RUNS)] | None, Field(validate_default=True)] = None
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0

    @property
    def combinations(self) -> int:
        """How many configurations there are, drawn or not."""
        return len(self.configurations or ()) or math.prod(map(len, (self.grid or {}).values()))

    def chosen(self) -> list[Configuration]:
        """The configurations to run, in the order of what was asked; of a grid the last option varies fastest."""
        numbers: Sequence[int] = range(self.combinations)
        if self.max_runs is not None and self.max_runs < len(numbers):
            numbers = sorted(random.Random(self.seed).sample(numbers, self.max_runs))  # noqa: S311 - no secret
        return [self.configurations[number] if self.configurations else self._point(number) for number in numbers]

    def _point(self, number: int) -> Configuration:
        found = {}
        for name, values in reversed((self.grid or {}).items()):
            number, place = divmod(number, len(values))
            found[name] = values[place]
        return dict(reversed(found.items()))

    @field_validator("grid")
    @classmethod
    def _of_options(cls, grid: dict[str, list[Any]] | None) -> dict[str, list[Any]] | None:
        _require_options(grid or {})
        for name, values in (grid or {}).items():
            if twice := _twice(values):
                raise unfitting(f"{name} names {shortened(values[twice[1]])} twice. Name each value once.")
        return grid

    @field_validator("configurations")
    @classmethod
    def _of_options_too(
        cls, configurations: list[dict[str, Any]] | None, info: ValidationInfo
    ) -> list[dict[str, Any]] | None:
        if "grid" in info.data and (info.data["grid"] is None) == (configurations is None):
            how = "and grid are both missing" if configurations is None else "and grid are both given"
            raise unfitting(f"{how}. Say in one of the two what to try.")
        for each in configurations or ():
            _require_options(each)
        if twice := _twice(configurations or []):
            raise unfitting(f"{twice[0] + 1} and {twice[1] + 1} are the same. Leave one of them out.")
        return configurations

    @field_validator("metric")
    @classmethod
    def _compares(cls, metric: str, info: ValidationInfo) -> str:
        tried = [info.data.get("grid") or {}, *(info.data.get("configurations") or ())]
        if metric not in HIGHER_IS_BETTER and any("beta" in each for each in tried):
            raise unfitting(f"is {metric}, and losses with different beta do not compare. Choose valid_accuracy.")
        return metric

    @field_validator("max_runs")
    @classmethod
    def _enough(cls, most: int | None, info: ValidationInfo) -> int | None:
        grid, listed = info.data.get("grid"), info.data.get("configurations")
        count = len(listed) if listed else math.prod(map(len, grid.values())) if grid else 0
        if most is None and count > MOST_RUNS:
            raise unfitting(
                f"is missing: there are {count} configurations, where {MOST_RUNS} can be run. Give it, to have so many "
                "of them drawn at random."
            )
        return most


class SweepRequest(JobRequest):
    """Body of `POST /v1/fine_tuning/sweeps`: that of a job, with what is to be tried."""

    sweep: Annotated[SweepOptions, WithoutNulls]

    @field_validator("sweep")
    @classmethod
    def _can_be_measured(cls, sweep: SweepOptions, info: ValidationInfo) -> SweepOptions:
        if sweep.metric.startswith("valid") and info.data.get("validation_file", "") is None:
            raise unfitting(
                "keeps the best by a validation_file. Give one; or set metric to train_loss, to go by the training "
                "loss, which says nothing of unseen data."
            )
        return sweep


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is to be tried, and each configuration with its whole request, in order."""

    options: SweepOptions
    configurations: tuple[Configuration, ...]
    requests: tuple[SweepRequest, ...]


def parse_sweep(given: Mapping[str, Any]) -> Sweep:
    """A sweep from what somebody wrote as JSON or YAML.

    Raises:
        RequestRefused: every mistake of every configuration, each with the path of its field and what to do.
    """
    given = dict(given)
    try:
        options = SweepOptions.model_validate(without_nulls(given.get("sweep")))
    except ValidationError:
        try:
            SweepRequest.model_validate(given)  # tells what else is wrong
        except ValidationError as error:
            raise refusal(error, FIELDS) from None
        raise
    configurations = options.chosen()
    requests: list[SweepRequest] = []
    mistakes: list[list[Mistake]] = []
    for configuration in configurations:
        try:
            requests.append(SweepRequest.model_validate(applied(given, configuration)))
            mistakes.append([])
        except ValidationError as error:
            mistakes.append(mistakes_of(error, FIELDS))
    if any(mistakes):
        raise of_configurations(mistakes, configurations)
    return Sweep(options, tuple(configurations), tuple(requests))


def applied(request: Mapping[str, Any], configuration: Configuration) -> dict[str, Any]:
    """A request with a configuration in it, each option where the request has its like."""
    found = dict(request)
    for name, value in configuration.items():
        if name not in HYPERPARAMETERS:
            found = _put(found, (name,) if name == "seed" else ("lora", name), value)
        elif found.get("hyperparameters") is not None:
            found = _put(found, ("hyperparameters", name), value)
        else:
            method = found.get("method")
            kind = method.get("type", "supervised") if isinstance(method, dict) else "supervised"
            found = _put(_put(found, ("method", "type"), kind), ("method", str(kind), "hyperparameters", name), value)
    return found


def _put(request: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy with a field set, unless what should hold it is something else, which is a mistake of the request's."""
    first, *rest = path
    inner = request.get(first)
    if not rest:
        return {**request, first: value}
    if not isinstance(inner, dict | None):
        return dict(request)
    return {**request, first: _put(inner or {}, rest, value)}


def _require_options(given: Mapping[str, Any]) -> None:
    if unknown := [shortened(name) for name in given if name not in OPTIONS]:
        raise unfitting(f"{', '.join(unknown)} can not be tried. Try some of {', '.join(OPTIONS)}.")


def _twice(values: Sequence[Any]) -> tuple[int, int] | None:
    """The places of two values that are the same; JSON tells 1 from true, as Python does not."""
    seen: dict[str, int] = {}
    for place, value in enumerate(values):
        first = seen.setdefault(json.dumps(value, sort_keys=True), place)
        if first != place:
            return first, place
    return None


FIELDS = fields_of(SweepRequest)
