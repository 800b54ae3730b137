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
        # Zeroed, because padding is read and multiplied by zero, which only finite numbers survive.
        self.layers = {
            index: (
                torch.zeros(slots, heads, width, dtype=dtype, device=device),
                torch.zeros(slots, heads, width, dtype=dtype, device=device),
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
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    result = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
    for group in plan.groups:
        result[0, group.rows] = _decode(group, query, keys, values, scaling, sliding_window)
    for start, stop in plan.prompts:
        span = (each[:, :, start:stop] for each in (query, key, value))
        mask = _window_mask(stop - start, sliding_window, query.device)
        result[:, start:stop], _ = sdpa_attention_forward(module, *span, mask, scaling=scaling)
    return result


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    if window is None or length <= window:
        return None  # plainly causal
    ages = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return ((ages >= 0) & (ages < window))[None, None]


def _decode(
    group: DecodeGroup,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """One query token per sequence, with the query heads of a key's group packed into one matrix.

    Rounds where torch's flash kernel rounds (scores and sums in float32, weights in the cache's dtype before
    they are normalised), so that greedy tokens part from a plain `generate` as rarely as can be.
    """
    n, kv_heads = len(group.rows), keys.shape[1]
    packed = query[0, :, group.rows].transpose(0, 1).reshape(n, kv_heads, -1, query.shape[-1]).float()
    k, v = (_gather(each, group, n) for each in (keys, values))
    scores = (packed @ k.transpose(2, 3)).mul_(scaling)
    seen = group.ages >= 0 if window is None else (group.ages >= 0) & (group.ages < window)
    scores.masked_fill_(~seen[:, None, None], float("-inf"))
    weights = scores.sub_(scores.amax(-1, keepdim=True)).exp_()
    total = weights.sum(-1, keepdim=True)
    attended = (weights.to(values.dtype).float() @ v).div_(total)
    return attended.reshape(n, query.shape[1], -1).to(query.dtype)


def _gather(storage: torch.Tensor, group: DecodeGroup, n: int) -> torch.Tensor:
    """Cached rows as float32 (n, kv heads, length, width)."""
    rows = storage.index_select(0, group.slots).view(n, group.length, *storage.shape[1:])
    return rows.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format)
