"""Device code: one forward pass over the tokens of all sequences."""

from collections.abc import Callable
from functools import partial

import torch

from swapmeet_serving.attention import KvCache, attend
from swapmeet_serving.base_model import BaseModel, set_attend
from swapmeet_serving.lora_weights import LoraWeights
from swapmeet_serving.sequence import Sequence
from swapmeet_serving.step_plan import build_plan


class Runner:
    """Owns the model and its KV cache."""

    def __init__(self, base: BaseModel, kv_bytes: int, page_size: int) -> None:
        per_token = sum(2 * heads * width for heads, width in base.kv_layers.values()) * base.dtype.itemsize
        self.pages = kv_bytes // (per_token * page_size)
        self._page_size = page_size
        self._base = base
        cache = KvCache(self.pages * page_size, base.kv_layers, base.dtype, base.device)
        set_attend(base.model, partial(attend, base.step, cache))

    @torch.inference_mode()
    def run(self, sequences: list[Sequence], weights: Callable[[str], LoraWeights]) -> torch.Tensor:
        """Compute each sequence's new tokens and cache them.

        Args:
            sequences: those that decode first, one adapter's side by side.
            weights: gives a pinned adapter's weights.

        Returns:
            (n, vocabulary) float32 logits of what follows each sequence.
        """
        base = self._base
        plan = build_plan(sequences, self._page_size, weights, base.device)
        base.step.plan = plan
        try:
            output = base.model(
                input_ids=plan.tokens, position_ids=plan.positions, use_cache=False, logits_to_keep=plan.last
            )
        finally:
            base.step.plan = None
        for sequence in sequences:
            sequence.cached = len(sequence.tokens)
        logits: torch.Tensor = output.logits[0].float()
        return logits
