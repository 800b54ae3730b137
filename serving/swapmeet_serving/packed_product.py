"""bitsandbytes' fused NF4 product on the CPU, for several layers at once and without its Python on the way.

In the model, half of such a product's time is the way there: a module's `forward`, `matmul_4bit`, torch's dispatcher
and the checks in each. What lies below is one C function of bitsandbytes (0.50.2, `backends/cpu/ops.py`), which takes
addresses; the weights must be as `Linear4bit` packs them for AVX512-BF16, block of 32 outputs after block, so those
of layers with one input can stand one behind the other.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

FUNCTION = "gemv_4bit_inference_cpu_nf4_bf16"
_PROTOTYPE = ctypes.CFUNCTYPE(
    None, *[ctypes.c_int64] * 3, *[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 3
)  # rows, outputs, inputs; x, weights, constants, result; block, strides of x and result


class PackedProduct:
    """x ↦ x Wᵀ + b for packed NF4 layers that share x; their weights become views of one."""

    def __init__(self, layers: Sequence[Any]) -> None:
        states = [layer.weight.quant_state for layer in layers]
        self._function = _function()
        self._outputs = [layer.out_features for layer in layers]
        self._inputs = layers[0].in_features
        self._block = states[0].blocksize
        self._weight = torch.cat([layer.weight.data for layer in layers])
        self._constants = torch.cat([state.absmax for state in states], dim=1)  # (blocks, outputs)
        self._bias = _joined(layers)
        for layer, part in zip(layers, torch.split(self._weight, self._outputs), strict=True):
            layer.weight.data = part

    @classmethod
    def of(cls, layers: Sequence[nn.Linear]) -> "PackedProduct | None":
        """None where a layer is not packed: no NF4, other dtypes, another device or CPU, or too odd a width."""
        packed = all(getattr(_state(layer), "packing_format_for_cpu", False) for layer in layers)
        alike = len({getattr(_state(layer), "blocksize", 0) for layer in layers}) == 1
        return cls(layers) if packed and alike and _function() else None

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(rows, in) bfloat16 to (rows, out) of each layer, views of one tensor."""
        assert x.dtype == torch.bfloat16 and x.stride(1) == 1 and x.shape[1] == self._inputs  # noqa: PT018 (hot)
        total = len(self._weight)
        result = x.new_empty(x.shape[0], total)
        self._function(
            x.shape[0], total, self._inputs, x.data_ptr(), self._weight.data_ptr(), self._constants.data_ptr(),
            result.data_ptr(), self._block, x.stride(0), total,
        )  # fmt: skip
        if self._bias is not None:
            result += self._bias
        return torch.split(result, self._outputs, dim=1) if len(self._outputs) > 1 else (result,)


def _function() -> Any:
    from bitsandbytes.cextension import lib

    found = getattr(lib, FUNCTION, None)
    return found and _PROTOTYPE(ctypes.cast(found, ctypes.c_void_p).value or 0)


def _state(layer: Any) -> Any:
    return getattr(layer.weight, "quant_state", None)


def _joined(layers: Sequence[Any]) -> torch.Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    return torch.cat([
        torch.zeros(layer.out_features, dtype=torch.bfloat16) if layer.bias is None else layer.bias.to(torch.bfloat16)
        for layer in layers
    ])  # fmt: skip
