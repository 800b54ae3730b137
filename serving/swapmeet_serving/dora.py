"""DoRA's gain on each output of a layer, which is the same for every input, so it is computed once."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional


def linear_gain(
    weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scaling: float, magnitude: torch.Tensor
) -> torch.Tensor:
    """magnitude / ‖W + scaling · B A‖ for each output, in the order of PEFT's `DoraLinearLayer`.

    Args:
        weight: (out, in), as served.
        down: (in, rank) float32.
        up: (rank, out) float32.
        scaling: the factor on B A.
        magnitude: (out,) float32.
    """
    adapted = weight.float() + scaling * functional.linear(down.contiguous(), up.t()).t()
    return magnitude / _norms(adapted)


def embedding_gain(
    weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scaling: float, magnitude: torch.Tensor
) -> torch.Tensor:
    """As `linear_gain`, for an embedding's (tokens, width) weight, in the order of `DoraEmbeddingLayer`."""
    return magnitude / _norms(weight.t() + scaling * (down @ up).t())


def _norms(weight: torch.Tensor) -> torch.Tensor:
    norms: torch.Tensor = torch.linalg.norm(weight, dim=1)
    return norms


def served_weight(layer: nn.Module) -> torch.Tensor:
    """A layer's (out, in) weight as its products see it: that of NF4 layers dequantised."""
    import bitsandbytes as bnb

    weight: Any = layer.weight
    if not isinstance(layer, bnb.nn.Linear4bit):
        found: torch.Tensor = weight
    elif getattr(weight.quant_state, "packing_format_for_cpu", False):
        found = _unpacked(weight.data, weight.quant_state)
    else:
        found = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    return found


def _unpacked(packed: torch.Tensor, state: Any) -> torch.Tensor:
    """Undo bitsandbytes' repacking for AVX512-BF16 (0.50.2, functional.py, `_convert_weight_packed_for_cpu`).

    Each 32 bytes hold 64 codes: two neighbouring inputs of 32 outputs, the first 32 codes in the low halves. Block
    constants are (in / block, out). bitsandbytes' own `dequantize_4bit` takes no notice of this layout.
    """
    outputs, inputs = state.shape
    bytes_ = packed.reshape(-1, 32)
    codes = torch.cat([bytes_ & 0xF, bytes_ >> 4], dim=1).view(outputs // 32, inputs // 2, 32, 2)
    codes = codes.transpose(1, 2).reshape(outputs, inputs)
    scales = state.absmax.view(inputs // state.blocksize, outputs).t().float()
    weight: torch.Tensor = state.code.float()[codes.int()] * scales.repeat_interleave(state.blocksize, dim=1)
    return weight
