"""Device code: one forward pass over the tokens of all sequences."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from swapmeet_serving.base_model import BaseModel
from swapmeet_serving.kernels import PAGE, Kernels
from swapmeet_serving.kernels.exact import ExactKernels
from swapmeet_serving.sequence import Sequence, Slice
from swapmeet_serving.step_plan import StepPlan, build_plan, kept_rows

if TYPE_CHECKING:
    from swapmeet_serving.kernels.decode_graphs import DecodeGraphs


def kernels_for(base: BaseModel, kv_bytes: int, *, exact: bool) -> Kernels:
    """The device's own kernels, or those that give transformers' and PEFT's very bits.

    Raises:
        BaseUnsupported: the device's own do not compute in the base's dtype.
    """
    pages = kv_bytes // (base.token_bytes * PAGE)
    if exact:
        return ExactKernels(pages, base.kv_layers, base.dtype, base.device)
    if torch.device(base.device).type == "cpu":
        from swapmeet_serving.kernels.cpu import CpuKernels

        return CpuKernels(pages, base.kv_layers, base.dtype, base.groups)
    from swapmeet_serving.kernels.gpu import GpuKernels

    return GpuKernels(pages, base.kv_layers, base.dtype, base.groups, base.device, base.sharing)


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
        self._graphs = _graphs(base, kernels)
        base.attach(kernels)

    @torch.inference_mode()
    def run(self, slices: list[Slice], adapters: Callable[[str], Any]) -> Logits:
        """Compute the slices' tokens and cache their keys and values.

        Args:
            slices: those that decode first, one mix's side by side.
            adapters: gives what the kernels hold of a pinned adapter.
        """
        plan = build_plan(slices, adapters)
        replayed = self._graphs.run(plan) if self._graphs else None
        logits = _logits(self._forward(plan) if replayed is None else replayed, plan, slices)
        if not any(piece.complete for piece in slices):
            wait_for(self._base.device)
        return logits

    def _forward(self, plan: StepPlan) -> torch.Tensor:
        tokens, positions, kept = (each.to(self._base.device) for each in (plan.tokens, plan.positions, plan.kept))
        try:
            self._kernels.begin(plan)
            output = self._base.model(input_ids=tokens, position_ids=positions, use_cache=False, logits_to_keep=kept)
        finally:
            self._kernels.end()
        logits: torch.Tensor = output.logits[0]
        return logits


def wait_for(device: str) -> None:
    """Return when a device has computed all that this thread gave it.

    Who reads a step's tokens waits for it. Where there are none to read, the adapters of a request that is cancelled
    would be evicted under a step that still reads them.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _graphs(base: BaseModel, kernels: Kernels) -> "DecodeGraphs | None":
    """CUDA graphs, where there is CUDA and nobody asks for the order of `generate`."""
    if torch.device(base.device).type != "cuda" or isinstance(kernels, ExactKernels):
        return None
    from swapmeet_serving.kernels.decode_graphs import Capture, DecodeGraphs
    from swapmeet_serving.kernels.gpu import GpuKernels

    assert isinstance(kernels, GpuKernels)
    return DecodeGraphs(base.model, kernels, base.device, Capture())


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
