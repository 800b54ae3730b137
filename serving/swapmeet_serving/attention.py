"""The seam to transformers: an attention function that hands on to what the runner put on the module.

transformers calls the function registered here once per layer with the step's tokens in one row. It hands on
to the module's `attend` attribute, so several models in one process don't meet. transformers builds no masks
for attention functions that it has no mask function for.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface

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
