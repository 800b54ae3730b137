"""A linear layer that adds each row's own adapter."""

from typing import Any, Literal

import torch
from torch import nn

from swapmeet_serving.kernels import Kernels

Rows = Literal["all", "last"]
"""Which tokens of a step a layer sees: all, or as the output head does, each sequence's last."""


class LoraLinear(nn.Module):
    """Wraps a base's linear layer.

    Attributes:
        base: the layer itself.
        name: its full name in the model.
        index: its place among the model's linear layers.
        rounds_first: PEFT's 4-bit layers round the adapter's part before adding it.
        rows: which tokens it sees.
        kernels: what adds adapters, once the model serves.
    """

    def __init__(self, base: nn.Linear, name: str, index: int, *, rounds_first: bool, rows: Rows) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self.index = index
        self.rounds_first = rounds_first
        self.rows: Rows = rows
        self.kernels: Kernels | None = None

    @property
    def weight(self) -> Any:
        """The base's weight, which some models look at."""
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) to (…, out), a row for each token that it sees."""
        result: torch.Tensor = self.base(x)
        if self.kernels is not None:
            self.kernels.add_lora(self, x, result)
        return result
