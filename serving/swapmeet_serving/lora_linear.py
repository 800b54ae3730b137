"""A linear layer that adds each row's own adapter."""

from typing import Any

import torch
from torch import nn

from swapmeet_serving.kernels import Kernels


class LoraLinear(nn.Module):
    """Wraps a base's linear layer.

    Attributes:
        base: the layer itself.
        name: its full name in the model.
        index: its place among the model's linear layers.
        rounds_first: PEFT's 4-bit layers round the adapter's part before adding it.
        head: it is the output head, which sees only each sequence's last token.
        kernels: what adds adapters, once the model serves.
    """

    def __init__(self, base: nn.Linear, name: str, index: int, *, rounds_first: bool, head: bool) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self.index = index
        self.rounds_first = rounds_first
        self.head = head
        self.kernels: Kernels | None = None

    @property
    def weight(self) -> Any:
        """The base's weight, which some models look at."""
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, rows, in) to (1, rows, out), where rows are those of the step, or of the output head."""
        result: torch.Tensor = self.base(x)
        if self.kernels is not None:
            self.kernels.add_lora(self, x, result)
        return result
