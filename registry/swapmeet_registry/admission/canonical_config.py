"""`adapter_config.json` as it is published: canonical JSON that PEFT reads, and computes the same with."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from swapmeet_registry import canonical
from swapmeet_registry.admission import lora_config
from swapmeet_registry.admission.canonical_choices import common_and_others, sayable, target_modules
from swapmeet_registry.admission.lora_config import FILE
from swapmeet_registry.errors import Refused

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,199}", re.ASCII)
PUBLISHED = frozenset(
    {
        "peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "r", "lora_alpha",
        "lora_dropout", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "modules_to_save",
        "fan_in_fan_out", "bias", "init_lora_weights", "lora_bias", "trainable_token_indices",
    }
)  # fmt: skip
"""All that `encode` writes."""
_ORDER = f"{FILE}: two keys of {{}} fit one module, and only their order tells which counts. Write full module names."


def encode(
    config: lora_config.LoraConfig,
    pairs: Collection[str],
    tokens: Collection[str] = (),
    modules: Collection[str] | None = None,
    touched: int | None = None,
) -> bytes:
    """The canonical bytes.

    They keep what decides the arithmetic, the dropout, and the base's name unless that is a folder of somebody's;
    they name neither PEFT's version nor where the adapter came from, so that equal adapters have equal bytes. Ranks,
    alphas and modules are said in one way (`canonical_choices`), whichever way the tool said them.

    Args:
        config: what was read.
        pairs: the modules that have LoRA weights. They stand for an expression in `target_modules`, which would be run
            wherever the adapter is loaded.
        tokens: the embeddings of which rows were trained.
        modules: those of the base that have weights, where known.
        touched: how many modules the weights change in any way; as many as have LoRA weights, unless given.

    Raises:
        Refused: the order of the original's keys decides what it means, and JSON has none.
    """
    named = _REPOSITORY.fullmatch(config.base_model_name_or_path or "") is not None
    revision = config.revision if named and _REVISION.fullmatch(config.revision or "") else None
    rank, alpha = _said(config, pairs, touched or len(pairs))
    fields: dict[str, Any] = {
        "peft_type": config.peft_type,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.base_model_name_or_path if named else None,
        "revision": revision,
        "inference_mode": True,
        "r": rank[0],
        "lora_alpha": _number(alpha[0]),
        "lora_dropout": config.lora_dropout,
        "target_modules": target_modules(config, pairs, modules),
        "rank_pattern": rank[1],
        "alpha_pattern": {key: _number(value) for key, value in alpha[1].items()},
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "modules_to_save": sorted(set(config.modules_to_save)) if config.modules_to_save else None,
        "fan_in_fan_out": False,
        "bias": "none",
        "init_lora_weights": True,
    }
    younger = {"lora_bias": config.lora_bias, "trainable_token_indices": config.trainable_token_indices}
    data = canonical.encode(fields | {key: value for key, value in younger.items() if value})
    read = lora_config.parse(data)
    if any(config.rank(name) != read.rank(name) or config.scale(name) != read.scale(name) for name in pairs):
        raise Refused(f"{FILE}: a module's name is a pattern that means another, too. Give ranks and alphas otherwise.")
    if any(config.tokens(name) != read.tokens(name) for name in tokens):
        raise Refused(_ORDER.format("trainable_token_indices"))
    return data


def require_published(data: bytes) -> None:
    """Refuse a configuration that could be read, but that no publish writes: a loader is to do nothing of a stranger's.

    Raises:
        Refused: it chooses modules by an expression or by layers, names a folder as base, or says what no publish does.
    """
    config = lora_config.parse(data)
    if config.narrowed:
        raise Refused(f"{FILE} chooses modules in a way that no publish writes. Do not trust it.")
    if config.base_model_name_or_path and not _REPOSITORY.fullmatch(config.base_model_name_or_path):
        raise Refused(f"{FILE} names a folder as its base, which no publish writes. Do not trust it.")
    said = {key for key, value in canonical.decode(data).items() if value not in (None, {}, [])}
    if foreign := sorted(said - PUBLISHED):
        raise Refused(f"{FILE} says {', '.join(foreign)}, which no publish writes. Do not trust it.")


def _said(
    config: lora_config.LoraConfig, pairs: Collection[str], touched: int
) -> tuple[tuple[int, dict[str, int]], tuple[float, dict[str, float]]]:
    """Rank and alpha: of most modules, and by pattern.

    Raises:
        Refused: the order of the original's keys decides what it means, and JSON has none.
    """
    ordered = config.model_copy(
        update={"rank_pattern": _sorted(config.rank_pattern), "alpha_pattern": _sorted(config.alpha_pattern)}
    )
    ranks, alphas = {name: config.rank(name) for name in pairs}, {name: config.alpha(name) for name in pairs}
    if any(ordered.rank(name) != ranks[name] or ordered.alpha(name) != alphas[name] for name in pairs):
        raise Refused(_ORDER.format("rank_pattern or alpha_pattern"))
    rank, alpha = common_and_others(ranks, config.r), common_and_others(alphas, config.lora_alpha)
    if sayable(rank[1], alpha[1], touched):
        return rank, alpha
    return (config.r, config.rank_pattern), (config.lora_alpha, config.alpha_pattern)


def _sorted(patterns: Mapping[str, lora_config.Number]) -> dict[str, lora_config.Number]:
    return dict(sorted(patterns.items()))


def _number(value: float) -> float | int:
    return int(value) if value.is_integer() else value
