"""How long a run computes: its products at the hardware's speed, and the weights that each pass reads again."""

from dataclasses import dataclass
from math import prod

from swapmeet_training.plan.batches import Batch
from swapmeet_training.plan.hardware import Hardware
from swapmeet_training.plan.settings import Adapter, RunSettings
from swapmeet_training.plan.shape import BaseShape

DEQUANTIZED = 0.5 + 2 + 2
"""Bytes of memory traffic per NF4 weight and product: read packed, written in 16 bits, read by the product."""


@dataclass(frozen=True, slots=True)
class Work:
    """What micro-batches ask of the hardware: operations, and bytes read and written for the weights alone."""

    operations: float
    traffic: float

    def seconds(self, hardware: Hardware) -> float:
        """Time to compute it."""
        return self.operations / (hardware.flops * hardware.efficiency) + self.traffic / hardware.bandwidth

    def times(self, count: float) -> "Work":
        """As much work, so many times."""
        return Work(self.operations * count, self.traffic * count)

    def __add__(self, other: "Work") -> "Work":
        return Work(self.operations + other.operations, self.traffic + other.traffic)


def training_work(shape: BaseShape, settings: RunSettings, batch: Batch) -> Work:
    """Forward and backward of a micro-batch; checkpointing makes the layers' forward twice, DPO adds the reference."""
    forwards = 1 + settings.gradient_checkpointing + (settings.method == "dpo")
    adapter = Adapter.of(shape, settings).parameters
    layers = forwards + 1  # the frozen weights' backward is one product, that of the inputs' gradient
    work = _layers(shape, batch).times(layers)
    attention = _attention(shape, batch) * (forwards + 2)
    lora = 2.0 * adapter * batch.padded * (forwards + 2)
    head = _head(shape, batch) * (2 + (settings.method == "dpo"))
    return Work(work.operations + attention + lora + head, work.traffic)


def evaluation_work(shape: BaseShape, settings: RunSettings, batch: Batch) -> Work:
    """A pass without gradients; DPO makes two."""
    once = _layers(shape, batch) + Work(_attention(shape, batch) + _head(shape, batch), 0)
    return once.times(2 if settings.method == "dpo" else 1)


def _layers(shape: BaseShape, batch: Batch) -> Work:
    weights = sum(prod(size) for size in shape.linears.values())
    return Work(2.0 * weights * batch.padded, DEQUANTIZED * weights)


def _attention(shape: BaseShape, batch: Batch) -> float:
    """Scores and values, of which causal kernels leave out half; a mask hides that half from them."""
    causal = 1.0 if batch.masked else 0.5
    return 4.0 * len(shape.layers) * shape.queries * batch.length * batch.padded * causal


def _head(shape: BaseShape, batch: Batch) -> float:
    return 2.0 * shape.vocabulary * shape.hidden * batch.rows * batch.positions
