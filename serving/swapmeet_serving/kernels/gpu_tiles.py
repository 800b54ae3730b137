"""What the GPU's kernels agree on for their tiles."""

from typing import Any

import torch


def power_of_two(value: int) -> int:
    """The least that is no smaller: tiles, and sizes of graphs, are powers of two."""
    return 1 << max(0, value - 1).bit_length()


def precision(like: torch.Tensor) -> Any:
    """Of products of float32: exact for models in float32, and more exact than their weights for others."""
    return "ieee" if like.dtype == torch.float32 else "tf32"
