"""`adapter_model.safetensors`: complete LoRA pairs of finite numbers, and nothing else. Works without torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from swapmeet_registry.errors import Refused
from swapmeet_registry.lora_config import LoraConfig
from swapmeet_registry.safetensors_file import TensorEntry, read_header

FILE = "adapter_model.safetensors"
MAX_HEADER = 4 << 20
MAX_TENSORS = 20_000
CHUNK = 4 << 20

_KEY = re.compile(r"base_model\.model\.([A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)\.lora_([AB])\.weight")
_EXPONENTS = {"F32": ("<u4", 0x7F80_0000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
"""How to read a dtype's bits, and where its exponent stands: all ones mean NaN or infinity (IEEE 754)."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The two factors of one linear layer: A is rank by inputs, B is outputs by rank."""

    module: str
    a: TensorEntry
    b: TensorEntry

    @property
    def rank(self) -> int:
        """The rank of the product."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs of the layer."""
        return self.b.shape[0], self.a.shape[1]


def read_pairs(path: Path, config: LoraConfig) -> tuple[Pair, ...]:
    """The pairs of an adapter's weights, sorted by module name, each as the configuration says.

    Raises:
        Refused: the file is unsound, or a tensor is unknown, unpaired, of a wrong shape or not finite.
    """
    header = read_header(path, max_header=MAX_HEADER, max_tensors=MAX_TENSORS)
    halves: dict[str, dict[str, TensorEntry]] = {}
    for entry in header.tensors:
        module, factor = _place(entry)
        halves.setdefault(module, {})[factor] = entry
    if not halves:
        raise Refused(f"{path.name} holds no LoRA weights. Save a trained adapter.")
    pairs = tuple(_pair(module, half, config) for module, half in sorted(halves.items()))
    with path.open("rb") as stream:
        for entry in header.tensors:
            stream.seek(header.data_start + entry.start)
            _require_finite(stream, entry)
    return pairs


def require_shapes(pairs: tuple[Pair, ...], modules: Mapping[str, tuple[int, int]], base: str) -> None:
    """Check that each pair fits the linear layer of its name.

    Args:
        pairs: what `read_pairs` gives.
        modules: outputs and inputs of the base's linear layers by module name.
        base: the base's name, for the message.

    Raises:
        Refused: the base has no such layer, or one of another shape.
    """
    for pair in pairs:
        shape = modules.get(pair.module)
        if shape is None:
            raise Refused(f"The adapter changes {pair.module}, and {base} has no such linear layer.")
        if pair.shape != tuple(shape):
            raise Refused(
                f"The adapter's {pair.module} is {pair.shape[0]} by {pair.shape[1]} (outputs by inputs), but in {base} "
                f"it is {shape[0]} by {shape[1]}."
            )


def _place(entry: TensorEntry) -> tuple[str, str]:
    found = _KEY.fullmatch(entry.name)
    if not found:
        raise Refused(
            f"{FILE} holds {entry.name[:200]!r}, which is not LoRA on a linear layer. Only tensors named "
            "base_model.model.MODULE.lora_A.weight and …lora_B.weight are supported."
        )
    if entry.dtype not in _EXPONENTS:
        raise Refused(f"{FILE}: {entry.name} has the dtype {entry.dtype}. Save the adapter as {', '.join(_EXPONENTS)}.")
    if len(entry.shape) != 2 or 0 in entry.shape:
        raise Refused(f"{FILE}: {entry.name} has the shape {list(entry.shape)}; a LoRA factor is a matrix.")
    return found[1], found[2]


def _pair(module: str, half: dict[str, TensorEntry], config: LoraConfig) -> Pair:
    if len(half) != 2:
        missing = "B" if "A" in half else "A"
        raise Refused(f"{FILE}: {module} lacks its lora_{missing}. Save the adapter again.")
    pair = Pair(module, half["A"], half["B"])
    if pair.b.shape[1] != pair.rank:
        raise Refused(
            f"{FILE}: {module} has A of rank {pair.rank} and B of rank {pair.b.shape[1]}; they must be equal."
        )
    if pair.rank != config.rank(module):
        raise Refused(
            f"{FILE}: {module} has rank {pair.rank}, but adapter_config.json gives it rank {config.rank(module)}."
        )
    if not config.targets(module):
        raise Refused(f"{FILE} holds weights for {module}, which adapter_config.json's target_modules does not name.")
    return pair


def _require_finite(stream: BinaryIO, entry: TensorEntry) -> None:
    import numpy as np  # here, so that importing the registry stays quick

    dtype, exponent = _EXPONENTS[entry.dtype]
    left = entry.size
    while left:
        chunk = stream.read(min(CHUNK, left))
        if not chunk:
            raise Refused(f"{FILE} was cut short while it was read. Push again when nothing writes to it.")
        if np.any(np.frombuffer(chunk, dtype) & exponent == exponent):
            raise Refused(f"{FILE}: {entry.name} holds a NaN or an infinity. The training run diverged.")
        left -= len(chunk)
