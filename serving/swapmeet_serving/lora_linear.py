"""A linear layer that adds each row's own adapter."""

from typing import Any

import torch
from torch import nn

from swapmeet_serving.lora_weights import LoraPair
from swapmeet_serving.step_plan import CurrentStep, LoraSegment


class LoraLinear(nn.Module):
    """Wraps a base's linear layer under its full name.

    As PEFT does: adapters are computed in float32, and added to the layer's output in its own dtype.
    """

    def __init__(self, base: nn.Linear, name: str, step: CurrentStep, *, rounds_first: bool, head: bool) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self._step = step
        self._rounds_first = rounds_first  # PEFT's 4-bit layers round the adapter's part before adding it
        self._head = head

    @property
    def weight(self) -> Any:
        """The base's weight, which some models look at."""
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, rows, in) to (1, rows, out), where rows are those of the step, or of the output head."""
        result: torch.Tensor = self.base(x)
        plan = self._step.plan
        if plan is None:
            return result
        wide = None
        for segment in plan.last_segments if self._head else plan.segments:
            pair = segment.weights.get(self.name)
            if pair is not None:
                wide = x[0].float() if wide is None else wide
                addend = _product(wide, segment, pair)
                rows = result[0, segment.start : segment.stop]
                rows += addend.to(result.dtype) if self._rounds_first else addend
        return result


def _product(x: torch.Tensor, segment: LoraSegment, pair: LoraPair) -> torch.Tensor:
    """x Aᵀ Bᵀ · scaling as a batch of equal products, of which each has just one sequence's rows."""
    n = (segment.stop - segment.start) // segment.rows
    rows = x[segment.start : segment.stop].view(n, segment.rows, -1)
    inner = torch.bmm(rows, pair.down.expand(n, -1, -1))
    outer = torch.bmm(inner, pair.up.expand(n, -1, -1)).flatten(0, 1)
    return outer if pair.scaling == 1.0 else outer.mul_(pair.scaling)
