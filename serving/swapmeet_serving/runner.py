"""Device code: one forward pass over the tokens of all sequences."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from swapmeet_serving.base_model import BaseModel
from swapmeet_serving.kernels import PAGE, Kernels
from swapmeet_serving.kernels.exact import ExactKernels
from swapmeet_serving.sequence import Sequence, Slice
from swapmeet_serving.step_plan import StepPlan, build_plan, kept_rows


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

    return CpuKernels(pages, base.kv_layers, base.dtype, base.groups)


@dataclass(frozen=True, slots=True, eq=False)
class PromptLogits:
    """What the model predicts after each of a prompt's tokens.

    Attributes:
        sequence: whose prompt.
        position: the first row's place in it.
        rows: (rows, vocabulary) in the model's dtype.
    """

    sequence: Sequence
    position: int
    rows: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Logits:
    """What a step computed.

    Attributes:
        next: (n, vocabulary) float32 of what follows each sequence.
        prompts: of the sequences that want them.
    """

    next: torch.Tensor
    prompts: tuple[PromptLogits, ...] = ()


class Runner:
    """Owns the model, and has its layers use the kernels."""

    def __init__(self, base: BaseModel, kernels: Kernels) -> None:
        self._base = base
        self._kernels = kernels
        base.attach(kernels)

    @torch.inference_mode()
    def run(self, slices: list[Slice], adapters: Callable[[str], Any]) -> Logits:
        """Compute the slices' tokens and cache their keys and values.

        Args:
            slices: those that decode first, one mix's side by side.
            adapters: gives what the kernels hold of a pinned adapter.
        """
        plan = build_plan(slices, adapters, self._base.device)
        try:
            self._kernels.begin(plan)
            output = self._base.model(
                input_ids=plan.tokens, position_ids=plan.positions, use_cache=False, logits_to_keep=plan.kept
            )
        finally:
            self._kernels.end()
        return _logits(output.logits[0], plan, slices)


def _logits(kept: torch.Tensor, plan: StepPlan, slices: list[Slice]) -> Logits:
    if not any(each.sequence.wants_prompt_logits for each in slices):
        return Logits(kept.float())
    spans = list(zip(slices, plan.spans, kept_rows(plan.spans), strict=True))
    prompts = tuple(
        PromptLogits(piece.sequence, span.position, kept[start:stop])
        for piece, span, (start, stop) in spans
        if piece.sequence.wants_prompt_logits
    )
    return Logits(kept[[stop - 1 for piece, _, (_, stop) in spans if piece.complete]].float(), prompts)
