"""Attention over keys and values in pages, as a transformers attention function.

transformers calls the function registered here once per layer with the step's tokens in one row. It hands on
to the `attend` attribute that the runner put on the module, so several models in one process don't meet.
transformers builds no masks for attention functions that it has no mask function for.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from swapmeet_serving.step_plan import CurrentStep, DecodeGroup

NAME = "swapmeet_paged"

Attend = Callable[..., torch.Tensor]
"""`attend(module, query, key, value, **settings)`: (1, heads, T, width) each to (1, T, heads, width)."""


def _dispatch(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    attend: Any = module.attend
    return attend(module, query, key, value, attention_mask=attention_mask, **settings), None


AttentionInterface.register(NAME, _dispatch)


class KvCache:
    """Keys and values of every layer, (pages · page size, heads, width) each, in the model's dtype."""

    def __init__(self, slots: int, layers: dict[int, tuple[int, int]], dtype: torch.dtype, device: str) -> None:
        self.layers = {
            index: (
                torch.empty(slots, heads, width, dtype=dtype, device=device),
                torch.empty(slots, heads, width, dtype=dtype, device=device),
            )
            for index, (heads, width) in layers.items()
        }

    def write(
        self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store (1, heads, T, width) keys and values at T slots; returns the layer's whole storage."""
        keys, values = self.layers[layer]
        keys[slots] = key[0].transpose(0, 1)
        values[slots] = value[0].transpose(0, 1)
        return keys, values


def attend(
    step: CurrentStep,
    cache: KvCache,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> torch.Tensor:
    """Store the step's keys and values, then attend within each sequence.

    Queries are (1, heads, T, width), keys and values (1, kv heads, T, width), the result (1, T, heads, width).
    Scores are multiplied with `scaling`, or 1/sqrt(width). With a sliding window, a token sees that many
    tokens, itself included.
    """
    plan, index = step.plan, cast(int, module.layer_idx)
    assert plan is not None, "the model runs outside of a step"
    keys, values = cache.write(index, plan.slots, key, value)
    result = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
    for group in plan.groups:
        result[0, group.rows] = _decode(module, group, query, keys, values, scaling, sliding_window)
    for start, stop in plan.prompts:
        span = (each[:, :, start:stop] for each in (query, key, value))
        mask = _window_mask(stop - start, sliding_window, query.device)
        result[:, start:stop], _ = sdpa_attention_forward(module, *span, mask, scaling=scaling)
    return result


def _decode(
    module: torch.nn.Module,
    group: DecodeGroup,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """One query token per sequence, (n, heads, width), against its cached keys and values.

    Goes through the very function, and the very shapes, of transformers' own attention. Padding, a mask or
    query heads packed together would change in which order sums are taken; each alone was seen to part
    greedy tokens from a plain `generate`, as one changed bit is enough to in bfloat16.
    """
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
