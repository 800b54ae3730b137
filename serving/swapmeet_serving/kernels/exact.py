"""torch on any device, in the very order of transformers and PEFT.

Every matrix product that touches an adapter or the cache has, per sequence, the shape that the sequence alone
would give it, and goes through the functions that `generate` would call. Padding, a mask or query heads packed
together would change in which order sums are taken; each alone was seen to part greedy tokens from a plain
`generate`, as one changed bit is enough to in bfloat16.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, cast

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from swapmeet_serving.adapter_parts import Parts, PartsStep, linear_part, product
from swapmeet_serving.kernels import PAGE, slots
from swapmeet_serving.lora_weights import LoraPair, LoraPairs
from swapmeet_serving.step_plan import Segment, Span, StepPlan, kept_rows, row, segments_of


@dataclass(frozen=True, slots=True, eq=False)
class ExactLora:
    """An adapter's pairs, and its other parts, by module."""

    pairs: dict[str, LoraPair]
    parts: Parts


@dataclass(frozen=True, slots=True)
class _Group:
    """Sequences that decode and are equally long: (n,) rows, and (n, length) slots, the present one last."""

    rows: torch.Tensor
    slots: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Layout:
    slots: torch.Tensor
    segments: tuple[Segment, ...]
    last_segments: tuple[Segment, ...]
    groups: tuple[_Group, ...]
    prompts: tuple[Span, ...]
    parts: PartsStep | None


class ExactKernels:
    """Slow and exact. Adapters are held, and computed, in float32, as PEFT does."""

    weight_bytes = 4
    whole = True

    def __init__(self, pages: int, layers: dict[int, tuple[int, int]], dtype: torch.dtype, device: str) -> None:
        self.pages = pages
        self._device = device
        self._cache = {
            index: tuple(torch.empty(pages * PAGE, *shape, dtype=dtype, device=device) for _ in range(2))
            for index, shape in layers.items()
        }
        self._layout: _Layout | None = None

    def hold(self, pairs: LoraPairs, ranks: Mapping[str, int], parts: Parts) -> ExactLora:  # noqa: ARG002 - each pair is memory of its own
        """On the device, with scalings folded in where that changes no bit; pairs of DoRA become parts."""
        held = ExactLora({}, dict(parts))
        for module, pair in pairs:
            pair = pair.to(self._device)
            if pair.dora is None:
                held.pairs[module] = _folded(pair)
            else:
                held.parts[module] = replace(linear_part(held.parts, module), dora=pair.dora, pair=pair)
        return held

    def bring(self, packed: ExactLora) -> ExactLora:
        """It is there."""
        return packed

    def begin(self, plan: StepPlan) -> None:
        """Slots in the cache, rows by adapter, and decoding sequences by length."""
        decoding = [span for span in plan.spans if span.position]
        assert all(span.rows == 1 for span in decoding), "prompts are computed whole"
        self._layout = _Layout(
            slots=row([slot for span in plan.spans for slot in slots(span)], self._device),
            segments=tuple(segments_of(plan.spans, [(span.start, span.stop) for span in plan.spans])),
            last_segments=tuple(segments_of(plan.spans, kept_rows(plan.spans))),
            groups=tuple(self._groups(decoding)),
            prompts=tuple(span for span in plan.spans if not span.position),
            parts=PartsStep.of(plan.spans),
        )

    def end(self) -> None:
        """Forget the layout."""
        if self._layout is not None and self._layout.parts is not None:
            self._layout.parts.close()
        self._layout = None

    def add_lora(self, shared: Any, x: torch.Tensor, results: Sequence[torch.Tensor]) -> None:
        """As PEFT does: computed in float32, and added in the result's own dtype."""
        layout, last = self._layout, shared.rows == "last"
        assert layout is not None, "no step is under way"
        segments, wide = layout.last_segments if last else layout.segments, None
        for layer, result in zip(shared.layers, results, strict=True):
            if layout.parts is not None:
                layout.parts.change(layer.name, x, result, last=last)
            for segment in segments:
                rows = result[segment.start : segment.stop]
                for held, weight in segment.terms:
                    pair = held.pairs.get(layer.name)
                    if pair is not None:
                        wide = x.float() if wide is None else wide
                        addend = _product(wide, segment, pair, weight)
                        rows += addend.to(result.dtype) if layer.rounds_first else addend

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Equally long sequences together, and each prompt by itself."""
        layout = self._layout
        assert layout is not None, "no step is under way"
        keys, values = self._cache[cast(int, module.layer_idx)]
        keys[layout.slots] = key[0].transpose(0, 1)
        values[layout.slots] = value[0].transpose(0, 1)
        result = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
        for group in layout.groups:
            result[0, group.rows] = _decode(module, group, query, keys, values, scaling, sliding_window)
        for prompt in layout.prompts:
            span = (each[:, :, prompt.start : prompt.stop] for each in (query, key, value))
            mask = _window_mask(prompt.rows, sliding_window, query.device)
            result[:, prompt.start : prompt.stop], _ = sdpa_attention_forward(module, *span, mask, scaling=scaling)
        return result

    def _groups(self, decoding: list[Span]) -> Iterator[_Group]:
        for length, members in groupby(sorted(decoding, key=lambda span: span.length), key=lambda span: span.length):
            spans = list(members)
            tables = torch.tensor([span.pages[: -(-length // PAGE)] for span in spans], device=self._device)
            slots = tables[:, :, None] * PAGE + torch.arange(PAGE, device=self._device)
            rows = row([span.start for span in spans], self._device)
            yield _Group(rows, slots.flatten(1)[:, :length].contiguous())


def _folded(pair: LoraPair) -> LoraPair:
    """Float32 of its own; both stay transposed views of row-major A and B: another layout would change the last bit."""
    if math.frexp(pair.scaling)[0] != 0.5:
        return pair
    # a power of two: folding it into B changes no bit of the product
    shift = None if pair.shift is None else pair.shift * pair.scaling
    return LoraPair(pair.down, (pair.up.t() * pair.scaling).t(), 1.0, shift=shift)


def _product(x: torch.Tensor, segment: Segment, pair: LoraPair, weight: float) -> torch.Tensor:
    """The scaled product, of which each sequence's rows are computed by themselves."""
    outer = product(x[segment.start : segment.stop], pair, segment.rows)
    factor = pair.scaling * weight
    return outer if factor == 1.0 else outer.mul_(factor)


def _decode(
    module: torch.nn.Module,
    group: _Group,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """One query token per sequence, (n, heads, width), against its cached keys and values."""
    slots = group.slots if window is None else group.slots[:, -window:]
    k, v = (
        each.index_select(0, slots.flatten()).view(*slots.shape, *each.shape[1:]).transpose(1, 2)
        for each in (keys, values)
    )
    rows = query[0, :, group.rows].transpose(0, 1).unsqueeze(2)
    output: torch.Tensor = sdpa_attention_forward(module, rows, k, v, None, scaling=scaling)[0]
    return output.squeeze(1)


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    if window is None or length <= window:
        return None  # plainly causal
    ages = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return ((ages >= 0) & (ages < window))[None, None]
