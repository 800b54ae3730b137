"""What a job says about integrations, and whether this server can do it."""

import importlib.util
import os
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from swapmeet.settings import Settings, load_settings

MOST = 5
"""Integrations of one job."""
Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Wandb(_Part):
    """A run in Weights & Biases."""

    project: Name
    entity: Name | None = None
    name: Name | None = None
    tags: tuple[Name, ...] = Field((), max_length=32)


class Mlflow(_Part):
    """A run in MLflow, in the tenant's own experiment of this name."""

    experiment: Name = "fine-tuning"
    name: Name | None = None
    tags: dict[Name, Annotated[str, Field(max_length=1000)]] = Field(default_factory=dict, max_length=16)


class Tensorboard(_Part):
    """A folder of event files, whose place the server chooses."""


class WandbRun(_Part):
    """`{"type": "wandb", "wandb": {"project", "entity"?, "name"?, "tags"?}}`, as OpenAI has it."""

    type: Literal["wandb"]
    wandb: Wandb


class MlflowRun(_Part):
    """`{"type": "mlflow", "mlflow": {"experiment"?, "name"?, "tags"?}}`."""

    type: Literal["mlflow"]
    mlflow: Mlflow = Mlflow()


class TensorboardRun(_Part):
    """`{"type": "tensorboard"}`."""

    type: Literal["tensorboard"]
    tensorboard: Tensorboard = Tensorboard()


Integration = Annotated[WandbRun | MlflowRun | TensorboardRun, Field(discriminator="type")]
INTEGRATIONS: TypeAdapter[Any] = TypeAdapter(Annotated[list[Integration], Field(max_length=MOST)])


def check_integrations(integrations: Sequence[Any], settings: Settings | None = None) -> list[str]:
    """What is wrong with a job's list of integrations: all of it, one sentence each, and nothing if it is good.

    Args:
        integrations: as they came, or as `Integration`.
        settings: the server's; those of the environment otherwise.
    """
    plain = [each.model_dump() if isinstance(each, BaseModel) else each for each in integrations]
    try:
        checked = INTEGRATIONS.validate_python(plain)
    except ValidationError as error:
        return [f"integrations{_where(each['loc'])}: {_say(each)}" for each in error.errors()]
    settings = settings or load_settings()
    missing = [(place, _missing(each, settings)) for place, each in enumerate(checked)]
    return [f"integrations.{place}: {what}" for place, what in missing if what]


def _missing(integration: Any, settings: Settings) -> str:
    """What this server lacks for an integration; nothing if it has all."""
    match integration:
        case MlflowRun() if not settings.mlflow:
            return (
                "this server knows no MLflow server. Leave the integration out, or have the operator set"
                " SWAPMEET_MLFLOW to its URL."
            )
        case WandbRun() if importlib.util.find_spec("wandb") is None:
            return (
                "the package wandb is not installed on this server. Leave the integration out, or have the operator"
                " run: pip install wandb"
            )
        case WandbRun() if not os.environ.get("WANDB_API_KEY") and os.environ.get("WANDB_MODE") != "offline":
            return (
                "this server has no key for Weights & Biases. Leave the integration out, or have the operator set"
                " WANDB_API_KEY."
            )
    return ""


def _where(location: tuple[int | str, ...]) -> str:
    """The field; the discriminator's value, which pydantic puts after the place, is no part of it."""
    return "".join(f".{each}" for number, each in enumerate(location) if number != 1)


def _say(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "this parameter is unknown; leave it out."
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return "its type must be wandb, mlflow or tensorboard."
    return f"{error['msg']}."
