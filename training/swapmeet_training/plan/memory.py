"""Peak memory of a run, part by part, at each of the moments that can be the highest.

What a moment holds follows from what autograd keeps (transformers 5, PEFT 0.21, bitsandbytes 0.50), operation by
operation; `benchmarks/training/plan_accuracy.py` holds it against every live tensor of real runs. All sizes in bytes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from swapmeet_training.lora.model import SHORT
from swapmeet_training.plan.activations import Activations, Attention
from swapmeet_training.plan.batches import Batch
from swapmeet_training.plan.nf4 import base_bytes
from swapmeet_training.plan.settings import Adapter, RunSettings
from swapmeet_training.plan.shape import BaseShape

Kind = Literal["cuda", "cpu"]
Part = Literal["base", "adapter", "gradients", "optimizer", "activations", "logits", "workspace", "overhead"]

PAGED_FROM = 100_000
"""bitsandbytes pages the states of tensors with as many elements or more (optim/optimizer.py, get_state_buffer)."""

KEPT_32_BIT = 4096
"""bitsandbytes keeps states of smaller tensors in 32 bits (its min_8bit_size)."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What a run holds at its peak, `moment`, by part; all parts together are the peak.

    `pageable` is what of the optimizer may leave a GPU for the host's memory while other parts need the room.
    `moments` are the sums at all moments looked at.
    """

    parts: Mapping[Part, int]
    moment: str
    pageable: int
    moments: Mapping[str, int]

    @property
    def peak(self) -> int:
        """Bytes, the process's own among them."""
        return sum(self.parts.values())

    @property
    def needed(self) -> int:
        """Bytes without which the run ends: the peak without what can be paged out."""
        return self.peak - self.pageable


def peak_memory(
    shape: BaseShape, settings: RunSettings, batch: Batch, kind: Kind, overhead: int, held_out: Batch | None = None
) -> Memory:
    """The peak of a run whose largest micro-batch is `batch`, and whose largest of an evaluation is `held_out`."""
    moments = dict(_moments(shape, settings, batch, kind, held_out))
    sums = {moment: sum(parts.values()) + overhead for moment, parts in moments.items()}
    highest = max(sums, key=lambda moment: sums[moment])
    adapter = Adapter.of(shape, settings)
    paged = kind == "cuda" and settings.optimizer.startswith("paged")
    pageable = _state_bytes(adapter, settings, PAGED_FROM) if paged else 0
    return Memory(moments[highest] | {"overhead": overhead}, highest, pageable, sums)


def attention_of(kind: Kind, longest: int, batch: Batch, shape: BaseShape) -> Attention:
    """How attention is computed: `swapmeet_training.lora.model.choose_attention`, and transformers' own choice."""
    if shape.softcap or (kind == "cpu" and longest <= SHORT):
        return "eager"
    return "masked" if batch.masked else "causal"


def _moments(
    shape: BaseShape, settings: RunSettings, batch: Batch, kind: Kind, held_out: Batch | None
) -> Iterator[tuple[str, dict[Part, int]]]:
    adapter = Adapter.of(shape, settings)
    weights = 4 * adapter.parameters
    copies = int(kind == "cpu" and held_out is not None and settings.keep_best)
    always: dict[Part, int] = {
        "base": base_bytes(shape),
        "adapter": weights * (1 + settings.frozen_adapters + copies),
        "optimizer": _state_bytes(adapter, settings),
    }
    kept = weights if settings.gradient_accumulation > 1 else 0
    longest = max(batch.length, held_out.length if held_out else 0)
    needs = Activations(shape, settings, adapter, batch, attention_of(kind, longest, batch, shape), kind)
    forward, layer, workspace = needs.forward, needs.layer, needs.workspace
    recomputed = layer if settings.gradient_checkpointing else 0
    if not settings.gradient_checkpointing:
        yield "forward of the last layer", always | {
            "gradients": kept, "activations": forward, "workspace": needs.passing_last,
        }  # fmt: skip
    yield "loss", always | {"gradients": kept, "activations": forward + needs.end, "logits": needs.logits}
    yield "backward of the last layer", always | {
        "gradients": kept, "activations": forward + recomputed, "workspace": workspace,
    }  # fmt: skip
    others = weights - weights // len(shape.layers)  # the layer's own gradients come when it is nearly done
    yield "backward of the first layer", always | {
        "gradients": kept or others, "activations": needs.inputs + needs.between + layer, "workspace": workspace,
    }  # fmt: skip
    yield "optimizer step", always | {"gradients": weights, "workspace": _step_bytes(adapter, settings, kind)}
    if kind == "cpu":  # elsewhere these copies are in the host's memory
        yield "checkpoint", always | {"workspace": weights + always["optimizer"]}
    if held_out is not None:
        seen = Activations(shape, settings, adapter, held_out, attention_of(kind, longest, held_out, shape), kind)
        yield "evaluation of the layers", always | {"activations": seen.passing}
        yield "evaluation of the loss", always | {"activations": seen.between, "logits": seen.passing_logits}


def _state_bytes(adapter: Adapter, settings: RunSettings, smallest: int = 0) -> int:
    """AdamW's two moments of all tensors with at least `smallest` elements."""
    sizes = [size for size in adapter.tensors if size >= smallest]
    if settings.optimizer != "paged_adamw_8bit":
        return 8 * sum(sizes)
    return sum(8 * size if size < KEPT_32_BIT else 2 * size + 8 * -(-size // 256) for size in sizes)


def _step_bytes(adapter: Adapter, settings: RunSettings, kind: Kind) -> int:
    """What an optimizer's step takes for a moment: torch's works on all tensors at once on GPUs."""
    if kind == "cuda":
        return 4 * adapter.parameters if settings.optimizer == "adamw_torch" else 0
    return 8 * max(adapter.tensors)
