"""Linear layers that add each row's own adapters, those with the same input computed together."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from swapmeet_serving.kernels import Kernels
from swapmeet_serving.packed_product import PackedProduct

if TYPE_CHECKING:
    from swapmeet_serving.kernels.gpu_nf4 import SplitProduct

Rows = Literal["all", "last"]
"""Which tokens of a step a layer sees: all, or as the output head does, those whose logits are wanted."""


class LoraLinear(nn.Module):
    """Wraps a base's linear layer.

    Attributes:
        base: the layer itself.
        name: its full name in the model.
        rounds_first: PEFT's 4-bit layers round the adapter's part before adding it.
        shared: the layers that see the same input.
        place: which of these it is.
    """

    def __init__(self, base: nn.Linear, name: str, *, rounds_first: bool) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self.rounds_first = rounds_first
        self.shared: SharedInput  # which comes into being after its layers
        self.place: int

    @property
    def weight(self) -> Any:
        """The base's weight, which some models look at."""
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) to (…, out), a row for each token that it sees."""
        return self.shared.result(self.place, x)


class SharedInput:
    """Layers that a model gives the very same tensor (q, k and v, say), computed as soon as the first is asked.

    Attributes:
        layers: in the order in which the model asks them.
        rows: which tokens they see.
        kernels: what adds adapters, once the model serves.
    """

    def __init__(self, layers: Sequence[LoraLinear], rows: Rows) -> None:
        self.layers = layers
        self.rows: Rows = rows
        self.kernels: Kernels | None = None
        self._product = _product([layer.base for layer in layers])
        self._x: torch.Tensor | None = None
        self._results: Sequence[torch.Tensor] = ()
        for place, layer in enumerate(layers):
            layer.shared, layer.place = self, place

    def result(self, place: int, x: torch.Tensor) -> torch.Tensor:
        """What one of the layers gives."""
        if x is not self._x:
            self._x, self._results = x, self._compute(x)
        result = self._results[place]
        if place == len(self.layers) - 1:
            self._x, self._results = None, ()
        return result

    def _compute(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        if self._product is None:
            results = [layer.base(x) for layer in self.layers]
            if self.kernels is not None:
                flat = [each.view(-1, each.shape[-1]) for each in results]
                self.kernels.add_lora(self, x.reshape(-1, x.shape[-1]), flat)
            return results
        rows = x.reshape(-1, x.shape[-1])
        found = self._product(rows)
        if self.kernels is not None:
            self.kernels.add_lora(self, rows, found)
        return [each.view(*x.shape[:-1], each.shape[-1]) for each in found]


def _product(layers: Sequence[nn.Linear]) -> "PackedProduct | SplitProduct | None":
    """The device's own for layers with one input, if it has one."""
    if not layers[0].weight.is_cuda:
        return PackedProduct.of(layers)
    from swapmeet_serving.kernels.gpu_nf4 import SplitProduct

    return SplitProduct.of(layers)
