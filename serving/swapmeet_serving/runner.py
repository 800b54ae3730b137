"""Device code: one forward pass over the tokens of all sequences."""

from collections.abc import Callable
from typing import Any

import torch

from swapmeet_serving.base_model import BaseModel
from swapmeet_serving.kernels import PAGE, Kernels
from swapmeet_serving.kernels.exact import ExactKernels
from swapmeet_serving.sequence import Slice
from swapmeet_serving.step_plan import build_plan


def kernels_for(base: BaseModel, kv_bytes: int, *, exact: bool) -> Kernels:
    """The device's own kernels, or those that give transformers' and PEFT's very bits.

    Raises:
        BaseUnsupported: the device's own do not compute in the base's dtype.
    """
    per_token = sum(2 * heads * width for heads, width in base.kv_layers.values()) * base.dtype.itemsize
    pages = kv_bytes // (per_token * PAGE)
    if exact or torch.device(base.device).type != "cpu":
        return ExactKernels(pages, base.kv_layers, base.dtype, base.device)
    from swapmeet_serving.kernels.cpu import CpuKernels

    return CpuKernels(
        pages, base.kv_layers, base.dtype, {name: index for index, name in enumerate(base.layers.linears)}
    )


class Runner:
    """Owns the model, and has its layers use the kernels."""

    def __init__(self, base: BaseModel, kernels: Kernels) -> None:
        self._base = base
        self._kernels = kernels
        base.attach(kernels)

    @torch.inference_mode()
    def run(self, slices: list[Slice], adapters: Callable[[str], Any]) -> torch.Tensor:
        """Compute the slices' tokens and cache their keys and values.

        Args:
            slices: those that decode first, one mix's side by side.
            adapters: gives what the kernels hold of a pinned adapter.

        Returns:
            (n, vocabulary) float32 logits of what follows each complete slice.
        """
        plan = build_plan(slices, adapters, self._base.device)
        try:
            self._kernels.begin(plan)
            output = self._base.model(
                input_ids=plan.tokens, position_ids=plan.positions, use_cache=False, logits_to_keep=plan.kept
            )
        finally:
            self._kernels.end()
        logits: torch.Tensor = output.logits[0].float()
        return logits
