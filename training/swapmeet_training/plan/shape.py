"""A base model's shape, from its config.json alone, or from the headers of its weight files."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from swapmeet_registry.errors import BaseInvalid
from swapmeet_registry.fingerprint import weight_files
from swapmeet_registry.safetensors_file import read_header
from swapmeet_training.plan.families import FAMILIES, Config, Shapes

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
ENDS = ("embed_tokens", "embed_in", "wte", "wpe", "lm_head", "embed_out")
CHEAP = {"gelu_new": 4, "gelu_fast": 5, "quick_gelu": 2, "relu2": 2}
"""Activation functions that transformers composes of several operations, each of which keeps what it needs."""


@dataclass(frozen=True)
class BaseShape:
    """What of a base decides the cost of a fine-tune.

    Attributes:
        architecture: the config's `model_type`.
        weights: shapes by name, as in the files; a tied output head is not among them.
        hidden, heads, kv_heads, head_width, vocabulary: as in the config; `inner` is the MLP's width.
        tied: whether the output head is the embedding.
        activation: the name of the MLP's activation function.
        softcap: whether attention scores and logits are squashed, as in Gemma 2.
    """

    architecture: str
    weights: Mapping[str, tuple[int, ...]]
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    tied: bool
    activation: str
    softcap: bool = False

    @classmethod
    def of(cls, folder: Path) -> "BaseShape":
        """The shape of a transformers folder; weights need not be there, and are never loaded.

        Raises:
            BaseInvalid: config.json is missing or damaged, or its architecture is unknown and there are no weights.
            Refused: a weight file is not sound.
        """
        return cls.from_config(_read(folder / "config.json"), folder)

    @classmethod
    def from_config(cls, values: Mapping[str, Any], folder: Path | None = None) -> "BaseShape":
        """As `of`, from a config that was read already; weights of unknown architectures are looked up in `folder`."""
        architecture = str(values.get("model_type"))
        if family := FAMILIES.get(architecture):
            config = Config(values, family.defaults)
            return cls._made(architecture, config, family.weights(config))
        if folder is None or not any(folder.glob("*.safetensors")):
            raise BaseInvalid(
                f"config.json is of the architecture {architecture!r}, whose layers are not known here; known are "
                f"{', '.join(FAMILIES)}. Put the weights (model.safetensors) beside it: then any can be planned."
            )
        text = values.get("text_config")
        return cls._made(architecture, Config(text if isinstance(text, dict) else values, {}), _stored(folder))

    @classmethod
    def _made(cls, architecture: str, config: Config, weights: Shapes) -> "BaseShape":
        return cls(
            architecture=architecture,
            weights=weights,
            hidden=config.hidden,
            inner=config.number("intermediate_size", 4 * config.hidden),
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_width=config.head_width,
            vocabulary=config.number("vocab_size"),
            tied=not any(head in name.split(".") for name in weights for head in ("lm_head", "embed_out")),
            activation=config.text("hidden_activation") or config.text("hidden_act"),
            softcap=config.switch("attn_logit_softcapping"),
        )

    @cached_property
    def parameters(self) -> int:
        """All of them, a tied output head counted once."""
        return sum(prod(shape) for shape in self.weights.values())

    @cached_property
    def linears(self) -> Mapping[str, tuple[int, int]]:
        """Shapes (out, in) of the linear layers, which are those that NF4 holds: all but the output head."""
        return {
            name.removesuffix(".weight"): (shape[0], shape[1])
            for name, shape in self.weights.items()
            if len(shape) == 2 and name.endswith(".weight") and not _at_an_end(name)
        }

    @cached_property
    def layers(self) -> tuple[Mapping[str, tuple[int, ...]], ...]:
        """The weights of each layer."""
        found: dict[int, dict[str, tuple[int, ...]]] = {}
        for name, shape in self.weights.items():
            if match := LAYER.search(name):
                found.setdefault(int(match[1]), {})[name] = shape
        return tuple(found[number] for number in sorted(found))

    @property
    def queries(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.kv_heads * self.head_width

    @property
    def gated(self) -> bool:
        """Whether the MLP multiplies two projections, as SwiGLU does."""
        return any("gate" in name or "w3" in name.split(".") for name in self.layers[0])

    @property
    def activation_steps(self) -> int:
        """How many operations the activation function is made of."""
        return CHEAP.get(self.activation, 1)


def _stored(folder: Path) -> Shapes:
    entries = [entry for path in weight_files(folder) for entry in read_header(path).tensors]
    shapes = {entry.name: entry.shape for entry in entries}
    if not any(LAYER.search(name) for name in shapes):
        raise BaseInvalid(f"{folder} has weights without numbered layers, which can not be planned. Use another base.")
    return shapes


def _at_an_end(name: str) -> bool:
    return any(end in name.split(".") for end in ENDS)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BaseInvalid(f"{path.parent} has no config.json. Name a transformers model folder.") from None
    except (OSError, ValueError) as error:
        raise BaseInvalid(f"{path} is not JSON that can be read ({error}). Fetch the base again.") from error
    if not isinstance(value, dict):
        raise BaseInvalid(f"{path} is not a JSON object. Fetch the base again.")
    return value
