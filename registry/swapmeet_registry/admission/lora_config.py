"""`adapter_config.json`: the part of PEFT's LoRA configuration that Swapmeet supports, as an allow-list.

A key that is not a field of `LoraConfig` may only be switched off (null, false, empty), so whatever a newer
PEFT invents is refused by name as soon as it is used. To support another part, add its field here, teach
`lora_weights` its tensors and the server its arithmetic. What other tools leave here and does nothing is
passed over (`_harmless`). What is published is what `canonical_config` makes of it.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from math import sqrt
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from swapmeet_registry import canonical
from swapmeet_registry.errors import Refused
from swapmeet_registry.origin.provenance import first_error, shown

FILE = "adapter_config.json"
MAX_BYTES = 1 << 20
MAX_RANK = 1024

UNSUPPORTED = {
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "auto_mapping": "a model class imported by name (train with task_type CAUSAL_LM)",
    "layer_replication": "replicated layers",
    "ensure_weight_tying": "one adapter for tied layers",
    "kasa_config": "KaSA",
    "megatron_config": "Megatron layers",
    "monteclora_config": "MonteCLoRA",
    "target_parameters": "LoRA on bare parameters",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
}
"""Parts of PEFT that are refused under a name that their users know; any other key is refused under its own."""

Number = TypeVar("Number", int, float)

_TRANSFORMERS = re.compile(r"transformers\.models(\.[a-z0-9_]+)+")
_OFF: tuple[Any, ...] = (None, False, {}, [])
_PATTERN_KEY = re.compile(r"\^?(?:[A-Za-z0-9_.-]|\\[.d])+")

MAX_PATTERNS = 2_000
"""Of ranks, and of alphas: to compile one takes longer than to use it on a hundred modules."""
MAX_MATCHES = 500_000
"""How often a pattern may be compared with a module's name."""

Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,500}$")]
Names = Annotated[list[Name], Field(min_length=1, max_length=20_000)]
Rank = Annotated[int, Field(ge=1, le=MAX_RANK)]
Alpha = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=100_000)]


def _plain_pattern(key: str) -> str:
    if not _PATTERN_KEY.fullmatch(key):
        raise ValueError(f"{key!r} is too free a pattern; write module names")
    return key


def _safe_expression(value: str | list[Name]) -> str | list[Name]:
    """A loader may run this expression over all module names: it must not run for hours."""
    if isinstance(value, list):
        return value
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError):
        raise ValueError("it is not a regular expression") from None
    if re.search(r"\)[*+{]|\\[1-9]|\(\?[^:]", value):
        raise ValueError("it repeats a group or refers back; write a simpler expression, or a list of module names")
    return value


Pattern = Annotated[Text, AfterValidator(_plain_pattern)]


class LoraConfig(BaseModel):
    """What PEFT saves for LoRA, without the parts that are switched off."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    peft_type: Literal["LORA"]
    task_type: Literal["CAUSAL_LM"] | None = None
    r: Rank
    lora_alpha: Alpha
    target_modules: Annotated[Annotated[str, Field(max_length=4000)] | Names, AfterValidator(_safe_expression)]
    rank_pattern: Annotated[dict[Pattern, Rank], Field(max_length=MAX_PATTERNS)] = {}
    alpha_pattern: Annotated[dict[Pattern, Alpha], Field(max_length=MAX_PATTERNS)] = {}
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    modules_to_save: Annotated[list[Name], Field(max_length=64)] | None = None
    trainable_token_indices: Tokens | Annotated[dict[Name, Tokens], Field(max_length=8)] | None = None
    fan_in_fan_out: Literal[False] = False
    bias: Literal["none"] = "none"
    # Which modules were chosen for training, beside target_modules: the weights say it, too.
    exclude_modules: Text | list[Text] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: Text | list[Text] | None = None
    # The rest says nothing of the arithmetic once training is over. Initializations that change the base's
    # own weights (PiSSA, OLoRA, …) are not among the values.
    init_lora_weights: bool | Literal["gaussian", "orthogonal", "eva"] = True
    eva_config: dict[str, Any] | None = None
    lora_dropout: Annotated[float, Field(ge=0, lt=1), AfterValidator(abs)] = 0.0  # -0.0 is 0.0
    inference_mode: bool = True
    base_model_name_or_path: str | None = None
    revision: str | None = None
    peft_version: str | None = None
    megatron_core: str | None = None
    qalora_group_size: int | None = None

    def rank(self, module: str) -> int:
        """The rank of a module's pair, by its full name."""
        return _by_pattern(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """The factor on B·A for a module, by its full name."""
        rank = self.rank(module)
        return self.alpha(module) / (sqrt(rank) if self.use_rslora else rank)

    def alpha(self, module: str) -> float:
        """What the factor is made of, for a module, by its full name."""
        return _by_pattern(self.alpha_pattern, module, self.lora_alpha)

    def targets(self, module: str) -> bool:
        """Whether `target_modules` may name a module; an expression is left to the loader, and says True."""
        if isinstance(self.target_modules, str):
            return True
        ends = (module, *(module[place + 1 :] for place in _dots(module)))
        return not self._targets.isdisjoint(ends)

    @property
    def narrowed(self) -> bool:
        """Whether `target_modules` says less than the weights do of which modules were trained."""
        choices = (self.exclude_modules, self.layers_to_transform, self.layers_pattern)
        return isinstance(self.target_modules, str) or any(choice not in (None, []) for choice in choices)

    @cached_property
    def _targets(self) -> frozenset[str]:
        return frozenset(self.target_modules)

    def saves(self, module: str) -> bool:
        """Whether a module, by its full name, or one that it is in, was trained in full."""
        return any(is_within(name, module) for name in self.modules_to_save or ())

    def tokens(self, module: str) -> list[int] | None:
        """Which rows of an embedding, by its full name, were trained one by one."""
        if isinstance(self.trainable_token_indices, dict):
            return next((ids for key, ids in self.trainable_token_indices.items() if module.endswith(key)), None)
        return self.trainable_token_indices


def is_within(saved: str, module: str) -> bool:
    """Whether a name in `modules_to_save` means a module or one that it is in.

    PEFT compares the ends of names, whether at a dot or not.
    """
    return f"{saved}." in f"{module}."


def parse(data: bytes) -> LoraConfig:
    """Read the bytes of an `adapter_config.json`.

    Raises:
        Refused: it is not sound, or uses a part of PEFT that is not supported; the message names it.
    """
    if len(data) > MAX_BYTES:
        raise Refused(f"{FILE} has {len(data)} bytes; at most {MAX_BYTES} are accepted.")
    try:
        value = canonical.decode(data)
    except ValueError as error:
        raise Refused(f"{FILE} is {error}. Save the adapter again with PEFT's save_pretrained().") from error
    known = LoraConfig.model_fields
    kept = {key: item for key, item in value.items() if key in known or not (_off(item) or _harmless(key, item))}
    for key in kept:
        if key not in known:
            raise Refused(
                f"{FILE} uses {shown(key)}: {UNSUPPORTED.get(key, 'a part of PEFT')}, which Swapmeet does not "
                "support. Train the adapter without it."
            )
    try:
        return LoraConfig.model_validate(kept)
    except ValidationError as error:
        raise Refused(f"{FILE}: {first_error(error)}") from error


def _harmless(key: str, value: Any) -> bool:
    """What tools write that changes nothing: how the base was loaded, and where its class is in transformers."""
    if key == "auto_mapping" and isinstance(value, dict):
        own = {"base_model_class", "parent_library"} <= value.keys() <= {*_MAPPING}
        names = [value.get(name) for name in ("base_model_class", "parent_library")]
        return own and str(names[0]).isidentifier() and _TRANSFORMERS.fullmatch(str(names[1])) is not None
    if key == "runtime_config":  # PEFT's own, which it drops when it reads
        return isinstance(value, dict) and all(isinstance(item, bool) for item in value.values())
    return key.startswith("unsloth_") and isinstance(value, bool | str)


_MAPPING = ("base_model_class", "parent_library", "unsloth_fixed")


def _dots(name: str) -> Iterator[int]:
    return (place for place, letter in enumerate(name) if letter == ".")


def _off(value: Any) -> bool:
    return any(value is off or (type(value) is type(off) and value == off) for off in _OFF)


def _by_pattern(patterns: Mapping[str, Number], module: str, default: Number) -> Number:
    """PEFT's rule: the first pattern that matches the end of the name decides, and the end begins at a dot."""
    return next((value for pattern, value in patterns.items() if _matches(pattern, module)), default)


def _matches(pattern: str, module: str) -> bool:
    """Whether `(.*\\.)?(PATTERN)$` does: a pattern has one length, so its place is known."""
    begin = len(module) - (len(pattern) - pattern.count("\\") - pattern.startswith("^"))
    if begin < 0 or (begin and module[begin - 1] != "."):
        return False
    return _compiled(pattern).fullmatch(module, begin) is not None


@lru_cache(maxsize=4 * MAX_PATTERNS)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
