"""Where an adapter's weights lie, in one block of memory: exactly what their ranks take, whatever these are.

Group by group of layers that share an input: the layers' `down` joined, and then each one's `up`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from swapmeet_serving.adapter_parts import Parts, linear_part
from swapmeet_serving.lora_weights import LoraPair

Groups = Sequence[Mapping[str, tuple[int, ...]]]
"""A base's linear layers by the inputs they share: names, and shapes (out, in)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a layer's weights begin in the block, in elements.

    Attributes:
        rank: 0 where the adapter has nothing on the layer.
        down: the joined `down` of its group, of so many `columns` in all, and its own begin at `column`.
        up: (rank, out).
    """

    name: str
    inputs: int
    outputs: int
    rank: int
    down: int
    columns: int
    column: int
    up: int


def places(groups: Groups, ranks: Mapping[str, int]) -> Iterator[Place]:
    """All layers of groups on which the adapter has anything."""
    begin = 0
    for group in groups:
        columns = sum(ranks.get(name, 0) for name in group)
        if not columns:
            continue
        inputs = next(iter(group.values()))[1]
        down, column, begin = begin, 0, begin + inputs * columns
        for name, (outputs, _) in group.items():
            rank = ranks.get(name, 0)
            yield Place(name, inputs, outputs, rank, down, columns, column, begin)
            column, begin = column + rank, begin + rank * outputs


def size(groups: Groups, ranks: Mapping[str, int]) -> int:
    """Elements of the whole block."""
    return sum(ranks.get(name, 0) * sum(shape) for group in groups for name, shape in group.items())


def up_of(pair: LoraPair) -> torch.Tensor:
    """(rank, out), with DoRA's gain in it, so that only what the gain adds to the base is left."""
    return pair.up if pair.dora is None else pair.up.to(pair.dora.gain) * pair.dora.gain


def add_parts(parts: Parts, name: str, pair: LoraPair, dtype: torch.dtype, device: str = "cpu") -> None:
    """What a pair is beside its product: DoRA's gain on the base, and the bias of B."""
    if pair.dora is not None:
        parts[name] = replace(linear_part(parts, name), dora=pair.dora.to(torch.device(device)).to(dtype))
    if pair.shift is not None:
        shift = (pair.shift * pair.scaling).to(device, dtype)
        parts[name] = replace(linear_part(parts, name), shift=shift)


def float_bits(value: float) -> int:
    """A float32's bits, as tables of integers hold it."""
    return int(np.float32(value).view(np.uint32))
