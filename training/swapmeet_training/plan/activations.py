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
    def forward(self) -> int:
        """What all layers keep until the loss, their common inputs among it."""
        if self.settings.gradient_checkpointing:
            return self.inputs + len(self.shape.layers) * self.between
        # Nothing is kept of the first layer's norm: no gradient is wanted of the embedding before it.
        first = self._norm("norm.weight", self.shape.hidden) * self.batch.padded
        return self.inputs + len(self.shape.layers) * self.layer - first

    @property
    def inputs(self) -> int:
        """Tokens, labels, mask and the rotary embedding; recomputed layers get the model's mask again."""
        rows, length = self.batch.rows, self.batch.length
        mask = {"eager": 2, "masked": 1, "causal": 0}[self.attention] * rows * length * length
        rotary = 2 * 2 * self.shape.head_width * length
        return self.batch.padded * 3 * 8 + rotary + (mask if self.settings.gradient_checkpointing else 0)

    @property
    def between(self) -> int:
        """A layer's input, which checkpointing keeps."""
        return 2 * self.shape.hidden * self.batch.padded

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
        dora = (2 + 4) * out if self.settings.dora else 0
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
        """What the norm behind the last layer keeps."""
        return self._norm("norm.weight", self.shape.hidden) * self.batch.padded

    @property
    def logits(self) -> int:
        """Log-probabilities, their gradient and the logits', in fp32; or the logits before and after choosing."""
        chosen, all_rows = self.batch.trained, self.batch.rows * self.batch.positions
        squashed = 2 * all_rows if self.shape.softcap else 0
        return self.shape.vocabulary * (max(12 * chosen, 6 * chosen + 2 * all_rows) + squashed)

    @property
    def passing_last(self) -> int:
        """What the last layer's forward takes for a moment where nothing is computed again: the MLP's output."""
        mask = self.batch.length if self.attention == "masked" else 0
        return self.batch.padded * (2 * self.shape.inner + 18 * self.shape.hidden + mask)

    @property
    def workspace(self) -> int:
        """What a layer's backward takes for a moment: at the module into or out of the MLP, or in attention."""
        modules = [
            self.shape.linears[module]
            for name in self.shape.layers[0]
            if (module := name.removesuffix(".weight")) in self.shape.linears
        ]
        up = max(modules, key=lambda size: (size[0], -size[1]))
        down = max(modules, key=lambda size: (size[1], -size[0]))
        moments = [self._through_lora(down), self._through_base(down), self._through_scores(up, down)]
        if self.settings.gradient_checkpointing:
            moments.append(self._computed_again(up, down))
        return max(moments)

    def _computed_again(self, up: tuple[int, int], down: tuple[int, int]) -> int:
        """The widest moment of computing a layer again, which ends as soon as all is kept that was.

        At the module into the MLP: its outputs, LoRA's before and after the scale in fp32, less what follows and is
        not kept yet. At the one out of it: its input in 16 bits, and its output.
        """
        hidden, inner = self.shape.hidden, self.shape.inner
        outputs = (16 if self.settings.dora else 10) * up[0]
        into = outputs - self._lora(*down) - (2 * inner if up[0] == inner else self._mlp())
        return self.batch.padded * (10 * hidden + max(into, 2 * inner + 2 * hidden))

    def _through_scores(self, up: tuple[int, int], down: tuple[int, int]) -> int:
        """Plain attention's softmax, whose gradients stand in 16 and in 32 bits; the MLP is done with by then."""
        if self.attention != "eager":
            return 0
        gone = self._mlp() + self._lora(*down) + self._lora(*up)
        return self.batch.padded * (6 * self.shape.heads * self.batch.length + 6 * self.shape.hidden - gone)

    def _through_lora(self, down: tuple[int, int]) -> int:
        """The gradient of a module's input in fp32, and that of the layer's output."""
        return (4 * down[1] + 4 * self.settings.rank + 6 * self.shape.hidden) * self.batch.padded

    def _through_base(self, down: tuple[int, int]) -> int:
        """A module's weight in 16 bits, with its block constants in fp32, and the gradient of the layer's output."""
        elements = prod(down)
        dora = 16 * elements + 4 * down[1] * down[1] if self.settings.dora else 0
        return 2 * elements + elements // 8 + dora + 6 * self.shape.hidden * self.batch.padded

    @property
    def passing(self) -> int:
        """The widest moment of a pass without gradients: a layer's attention, or its module into or out of the MLP."""
        rows, length, hidden, inner = self.batch.rows, self.batch.length, self.shape.hidden, self.shape.inner
        mask = {"eager": 2, "masked": 1, "causal": 0}[self.attention] * rows * length * length
        scores = {"eager": 10 * self.shape.heads, "masked": 2, "causal": 0}[self.attention] * length
        attention = 10 * self.shape.queries + 4 * hidden + scores
        widest = max(12 * inner + 10 * hidden, 6 * inner + 14 * hidden, attention)
        return mask + self.batch.padded * (3 * 8 + widest)

    @property
    def passing_logits(self) -> int:
        """Logits in 16 bits, those that are chosen, in fp32, and their log-probabilities."""
        chosen, all_rows = self.batch.trained, self.batch.rows * self.batch.positions
        return self.shape.vocabulary * max(8 * chosen, 6 * chosen + 2 * all_rows)
