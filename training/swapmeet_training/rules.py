"""What settings of a fine-tune say about each other: what follows from others, and what contradicts them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from swapmeet_training.lora.parent import inherited

CONTRADICTION = "contradiction"
"""The pydantic type of a mistake that lies in several settings."""

DPO_LEARNING_RATE = 5e-6
"""A pair moves two long sums of log-probabilities, so steps are forty times smaller than supervised ones."""

MAX_TEMPLATE = 256 << 10
"""Bytes of the longest chat template that serving accepts."""

DEFAULTS = {"method": "supervised", "init": "default", "beta": 0.1, "examples": None}
Spec = TypeVar("Spec")
Rule = Callable[[Any], str | None]


def checked(given: Mapping[str, Any], check: Callable[[dict[str, Any]], Spec]) -> Spec:
    """A specification from its settings, completed; `check` checks each setting for itself.

    Raises:
        ValidationError: holds every mistake, in single settings and in their combination.
    """
    settings, mistakes = dict(given), []
    if settings.get("method") == "dpo":
        settings.setdefault("learning_rate", DPO_LEARNING_RATE)
    if isinstance(settings.get("parent"), str | Path):
        own, differing = inherited(Path(settings["parent"]), settings)
        settings |= own
        mistakes += differing
    mistakes += contradictions(settings)
    try:
        spec = check(settings)
    except ValidationError as error:
        raise _together(error.title, [_again(finding) for finding in error.errors()], mistakes) from None
    if mistakes:
        raise _together(type(spec).__name__, [], mistakes)
    return spec


def contradictions(settings: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with settings taken together; one that is wrong by itself is told elsewhere."""
    spec = SimpleNamespace(**DEFAULTS | {key: value for key, value in settings.items() if value is not None})
    for rule in RULES:
        with suppress(AttributeError, TypeError):  # a setting that is not given contradicts none
            if sentence := rule(spec):
                yield sentence


def _beta(spec: Any) -> str | None:
    if spec.beta != DEFAULTS["beta"] and spec.method != "dpo":
        return "beta is a setting of the method dpo. Leave it out, or set method to dpo."
    return None


def _packing(spec: Any) -> str | None:
    if spec.packing and spec.method == "dpo":
        return "packing is for the method supervised, as pairs are compared whole. Set packing to false."
    return None


def _early_stopping(spec: Any) -> str | None:
    return _needs_validation("early_stopping", spec.early_stopping, spec)


def _eval_every(spec: Any) -> str | None:
    return _needs_validation("eval_every", spec.eval_every, spec)


def _examples(spec: Any) -> str | None:
    return _needs_validation("examples", spec.examples, spec)


def _show_examples(spec: Any) -> str | None:
    if spec.show_examples and spec.examples == 0:
        return "show_examples shows none where examples is 0. Raise examples, or leave show_examples out."
    return _needs_validation("show_examples", spec.show_examples, spec)


def _needs_validation(setting: str, given: Any, spec: Any) -> str | None:
    if given and not hasattr(spec, "validation"):
        return f"{setting} needs held-out examples. Name a validation file, or leave {setting} out."
    return None


def _dora(spec: Any) -> str | None:
    if spec.dora and spec.init in ("pissa", "olora"):
        return (
            f"dora and init {spec.init} exclude each other: DoRA scales the whole weight, of which {spec.init} "
            "takes a part away. Set dora to false, or init to default."
        )
    return None


def _init(spec: Any) -> str | None:
    if spec.parent and spec.init != "default":
        return f"init is {spec.init}, but with a parent the adapter starts as the parent is. Leave init out."
    return None


def _template(spec: Any) -> str | None:
    if len(spec.chat_template.encode()) > MAX_TEMPLATE:
        return f"chat_template has more than {MAX_TEMPLATE >> 10} KiB, which is all that serving takes. Shorten it."
    return None


RULES: tuple[Rule, ...] = (
    *(_beta, _packing, _early_stopping, _eval_every, _examples, _show_examples, _dora, _init, _template),
)


def _together(title: str, findings: list[InitErrorDetails], sentences: list[str]) -> ValidationError:
    more = [
        InitErrorDetails(type=PydanticCustomError(CONTRADICTION, "{sentence}", {"sentence": sentence}), input=None)
        for sentence in sentences
    ]
    return ValidationError.from_exception_data(title, findings + more)


def _again(finding: Any) -> InitErrorDetails:
    """A finding of pydantic's as it wants to be given one."""
    return InitErrorDetails(
        type=finding["type"], loc=finding["loc"], input=finding["input"], ctx=finding.get("ctx", {})
    )
