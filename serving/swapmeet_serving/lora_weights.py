"""Read a PEFT LoRA folder: checked against the base's modules first, then into tensors of exact rank."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open

from swapmeet_registry.safetensors_file import read_header
from swapmeet_serving.errors import AdapterUnsupported

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PREFIX = "base_model.model."
UNSUPPORTED = {
    "use_dora": "DoRA",
    "modules_to_save": "modules_to_save",
    "trainable_token_indices": "trained token embeddings",
    "lora_bias": "a bias in lora_B",
    "layer_replication": "layer replication",
    "alora_invocation_tokens": "activated LoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "arrow routing",
    "megatron_config": "Megatron layers",
    "target_parameters": "adapted parameters outside linear modules",
    "ensure_weight_tying": "adapted tied embeddings",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
"""Settings of PEFT's LoraConfig that change what is computed, and are refused while set."""

Linears = Mapping[str, torch.nn.Linear]
"""Every linear module of the base by name."""

Embeddings = Mapping[str, torch.Tensor]
"""The base's input and output embeddings, by the names that PEFT may save copies of them under."""


@dataclass(frozen=True, slots=True)
class LoraPair:
    """One module's adapter: x ↦ x · down · up · scaling, with `down` (in, rank), `up` (rank, out), float32.

    Both are transposed views of PEFT's row-major A and B.
    """

    down: torch.Tensor
    up: torch.Tensor
    scaling: float


LoraPairs = Iterator[tuple[str, LoraPair]]
"""An adapter's pairs by the names of the base's modules, read as they are asked for."""


class Holder(Protocol):
    """What takes an adapter's weights into memory: the engine's kernels."""

    weight_bytes: int

    def hold(self, pairs: LoraPairs, weights: int) -> Any:
        """An adapter in the form that it is computed from."""
        ...


@dataclass(frozen=True, slots=True)
class LoraFile:
    """An adapter folder whose every tensor belongs to a module of the base.

    `copies` are the tensors that PEFT saves of the output head or the embeddings beside an adapted head.
    """

    path: Path
    identity: str
    scalings: dict[str, float]
    copies: dict[str, torch.Tensor]
    weights: int
    holder: Holder

    @property
    def size(self) -> int:
        """Bytes it takes in memory."""
        return self.weights * self.holder.weight_bytes

    def read(self) -> Any:
        """Read the weights into memory, in the holder's form.

        Raises:
            AdapterUnsupported: what should be a copy of the base's weights differs from them.
        """
        with safe_open(self.path, framework="pt") as tensors:
            for name, weight in self.copies.items():
                if not torch.equal(tensors.get_tensor(name).to(weight), weight):
                    raise AdapterUnsupported(
                        f"{self.identity} brings a trained {name}, which is not served. Train it without."
                    )
            pairs = ((module, _pair(tensors.get_tensor, module, scaling)) for module, scaling in self.scalings.items())
            return self.holder.hold(pairs, self.weights)


def open_lora(folder: Path, identity: str, linears: Linears, embeddings: Embeddings, holder: Holder) -> LoraFile:
    """Check an adapter folder against the base's modules, reading headers only.

    Raises:
        AdapterUnsupported: a part of the adapter can not be served; the message names it.
        Refused: the weights are not a sound safetensors file.
    """
    config = _read_config(folder, identity)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise AdapterUnsupported(f"{identity} has no {WEIGHTS_FILE}. Save it with PEFT as safetensors.")
    found = {entry.name: entry.shape for entry in read_header(path).tensors}
    copies = {name: embeddings[name] for name in found if name in embeddings}
    expected = {name: tuple(weight.shape) for name, weight in copies.items()}
    scalings: dict[str, float] = {}
    for module in sorted({_module_of(name, identity) for name in found if name not in copies}):
        if module not in linears:
            raise AdapterUnsupported(
                f"{identity} adapts {module}, which is no linear layer of this base that adapters "
                "can be served on. Train it on this base, with linear target modules."
            )
        rank, scalings[module] = _rank_and_scaling(config, module)
        expected[_name(module, "A")] = (rank, linears[module].in_features)
        expected[_name(module, "B")] = (linears[module].out_features, rank)
    for name, shape in expected.items():
        if found.get(name) != shape:
            raise AdapterUnsupported(
                f"{identity} should have {name} of shape {shape} and has {found.get(name, 'none')}. "
                "Its weights, its configuration and this base do not belong together."
            )
    weights = sum(math.prod(found[name]) for name in found if name not in copies)
    return LoraFile(path, identity, scalings, copies, weights, holder)


def _read_config(folder: Path, identity: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError) as error:
        raise AdapterUnsupported(
            f"{identity} has no readable {CONFIG_FILE} ({error}). Save it with PEFT's save_pretrained()."
        ) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterUnsupported(f"{identity} is not a LoRA adapter. Only PEFT's LORA type is served.")
    parts = [part for key, part in UNSUPPORTED.items() if config.get(key)]
    if config.get("bias", "none") != "none":
        parts.append("trained biases")
    if parts:
        raise AdapterUnsupported(f"{identity} uses {', '.join(parts)}, which is not served. Train it without.")
    return config


def _module_of(name: str, identity: str) -> str:
    match = re.fullmatch(re.escape(PREFIX) + r"(.+)\.lora_[AB]\.weight", name)
    if not match:
        raise AdapterUnsupported(f"{identity} holds {name}, which is not a LoRA weight of a linear module.")
    return match[1]


def _name(module: str, which: str) -> str:
    return f"{PREFIX}{module}.lora_{which}.weight"


def _rank_and_scaling(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    rank = _by_pattern(config.get("rank_pattern"), module, config["r"])
    alpha = _by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of a module's name, as PEFT matches them."""
    matching = (value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module))
    return next(matching, default)


def _pair(read: Callable[[str], torch.Tensor], module: str, scaling: float) -> LoraPair:
    a, b = (read(_name(module, which)).to(torch.float32, copy=True) for which in "AB")
    return LoraPair(a.t(), b.t(), scaling)
