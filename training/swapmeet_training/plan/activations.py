"""What a forward pass keeps for the backward pass, operation by operation.

Widths are per token. bf16 values take 2 bytes, fp32 values 4. The base's own products keep nothing but NF4 weights;
LoRA keeps each module's input once more in fp32, because its weights are fp32.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

from swapmeet_training.plan.batches import Batch
from swapmeet_training.plan.settings import Adapter, RunSettings
from swapmeet_training.plan.shape import BaseShape

Attention = Literal["eager", "masked", "causal"]
"""Plain products of all scores; fused, with a mask of its own in each layer; fused, causal."""


@dataclass(frozen=True)
class Activations:
    """Bytes that a micro-batch takes; of a model's layers, those of the largest."""

    shape: BaseShape
    settings: RunSettings
    adapter: Adapter
    batch: Batch
    attention: Attention
    kind: Literal["cuda", "cpu"]

    @property
    def inputs(self) -> int:
        """Tokens, labels and masks, the rotary embedding, and the embedded tokens."""
        rows, length = self.batch.rows, self.batch.length
        mask = {"eager": 2, "masked": 1, "causal": 0}[self.attention] * rows * length * length
        rotary = 2 * 2 * self.shape.head_width * length
        return self.batch.padded * (3 * 8 + 2 * self.shape.hidden) + mask + rotary

    @property
    def between(self) -> int:
        """What is kept of a layer until its backward: everything, or with checkpointing its input."""
        return 2 * self.shape.hidden * self.batch.padded if self.settings.gradient_checkpointing else self.layer

    @cached_property
    def layer(self) -> int:
        """What one layer keeps."""
        return max(self._layer(number) for number in range(len(self.shape.layers)))

    def _layer(self, number: int) -> int:
        weights = self.shape.layers[number]
        modules = self.adapter.within(weights)
        lora = sum(self._lora(out, into) for out, into in modules)
        norms = sum(self._norm(name, shape[0]) for name, shape in weights.items() if "norm" in name and len(shape) == 1)
        per_token = norms + lora + self._mlp() + self._attention()
        mask = 2 * self.batch.length * self.batch.padded if self.attention == "masked" else 0
        return per_token * self.batch.padded + mask

    def _lora(self, out: int, into: int) -> int:
        """The input in fp32 and what A makes of it; with dropout, which of it was dropped; with DoRA, the outputs."""
        noise = {"cuda": 1, "cpu": 4}[self.kind] * into if self.settings.dropout else 0
        dora = (2 + 4 + 4) * out if self.settings.dora else 0
        return 4 * into + 4 * self.settings.rank + noise + dora

    def _norm(self, name: str, width: int) -> int:
        """RMS norms compute in fp32 and keep their input so; layer norms keep it as it is."""
        if name.endswith(".bias"):
            return 0
        if width == self.shape.head_width and ("q_norm" in name or "k_norm" in name):
            width *= self.shape.heads if "q_norm" in name else self.shape.kv_heads
        rms = name.removesuffix(".weight") + ".bias" not in self.shape.weights
        return 4 * width + 4 if rms else 2 * width + 8

    def _mlp(self) -> int:
        """The activation function's input, and of a gated MLP both factors of its product."""
        return 2 * self.shape.inner * (self.shape.activation_steps + 2 * self.shape.gated)

    def _attention(self) -> int:
        queries, keys = self.shape.queries, self.shape.keys
        if self.attention == "eager":
            scores = (4 + 2 + 4 * self.shape.softcap) * self.shape.heads * self.batch.length
            return 2 * 3 * queries + scores
        return 2 * 2 * queries + 2 * 2 * (queries if self.attention == "masked" else keys) + 4 * self.shape.heads

    @property
    def end(self) -> int:
        """What stands behind the last layer: its output, the last norm, and the places where the head runs."""
        between = self.layer if not self.settings.gradient_checkpointing else self.between
        return between + self._norm("norm.weight", self.shape.hidden) * self.batch.padded

    @property
    def logits(self) -> int:
        """Log-probabilities, their gradient and the logits', in fp32; or the logits before and after choosing."""
        chosen, all_rows = self.batch.trained, self.batch.rows * self.batch.positions
        squashed = 2 * all_rows if self.shape.softcap else 0
        return self.shape.vocabulary * (max(12 * chosen, 6 * chosen + 2 * all_rows) + squashed)

    @property
    def workspace(self) -> int:
        """What a layer's backward takes for a moment: gradients of the widest module, or its weight in 16 bits."""
        modules = [shape for shapes in self._modules() for shape in shapes]
        return max((self._module_workspace(out, into) for out, into in modules), default=0)

    def _modules(self) -> list[list[tuple[int, int]]]:
        return [
            [
                self.shape.linears[name.removesuffix(".weight")]
                for name in layer
                if name.removesuffix(".weight") in self.shape.linears
            ]
            for layer in self.shape.layers
        ]

    def _module_workspace(self, out: int, into: int) -> int:
        tokens = self.batch.padded
        lora = (4 * into + 4 * out + 2 * self.shape.hidden) * tokens
        base = 2 * prod((out, into)) + (2 * into + 2 * out) * tokens
        dora = 16 * out * into + 4 * into * into if self.settings.dora else 0
        return max(lora, base, dora)

    @property
    def passing(self) -> int:
        """What a pass without gradients holds: the widest moment of one layer."""
        widest = 2 * self.shape.hidden * 2 + 2 * self.shape.inner * (2 + self.shape.gated) + 4 * self.shape.inner
        scores = 6 * self.shape.heads * self.batch.length if self.attention == "eager" else 0
        return self.inputs + self.batch.padded * max(widest, 8 * self.shape.queries + scores)

    @property
    def passing_logits(self) -> int:
        """Logits in 16 bits, those that are chosen, in fp32, and their log-probabilities."""
        chosen, all_rows = self.batch.trained, self.batch.rows * self.batch.positions
        return self.shape.vocabulary * max(8 * chosen, 6 * chosen + 2 * all_rows)
