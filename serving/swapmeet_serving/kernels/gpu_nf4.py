"""The NF4 product for 5 to 64 rows on GPUs, several layers that share an input at once.

bitsandbytes 0.50.2 has a fused product that is as good as can be for up to four rows; for more, on Hopper and on
Blackwell, it dequantises most layers' weights to memory and reads them back. Here codes are looked up, and constants
expanded, on the way into tensor cores, from bitsandbytes' own layout. Layers are too narrow to fill a GPU by their
outputs, so the inputs are divided as well, into parts that are summed in order: how many depends on the layers and the
GPU, not on the rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import nn

from swapmeet_serving.kernels.gpu_tiles import power_of_two, precision

LEAST, MOST = 5, 64
"""Rows for which this is used."""

BLOCK: int = 64
"""Weights that have a constant of their own."""

NESTED: int = 256
"""Constants that have a constant of their own, where they are quantised, too."""

OUTPUTS: int = 64
"""Outputs at a time."""

COLUMNS: int = 512
"""Outputs that are summed at a time."""

PROGRAMS_PER_CORE = 2


@triton.jit(do_not_specialize=["rows"])
def _multiply(
    x, x_stride, weights, code, absmax, nested, code_2, absmax_2, offset, partial, rows, outputs, inputs, part,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, BLOCK: tl.constexpr, NESTED: tl.constexpr,
    DOUBLE: tl.constexpr,
):  # fmt: skip
    """partial (parts, rows, outputs) float32: x's part times the weights' (outputs, inputs)."""
    split = tl.program_id(1)
    n = (tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)).to(tl.int64)
    real = n < outputs
    m = tl.arange(0, ROWS)
    mine = m < rows
    half = tl.arange(0, BLOCK // 2)
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for begin in range(split * part, tl.minimum((split + 1) * part, inputs), BLOCK):
        pair = tl.load(weights + n[:, None] * (inputs // 2) + begin // 2 + half[None, :], mask=real[:, None], other=0)
        constant = n * (inputs // BLOCK) + begin // BLOCK
        if DOUBLE:
            group = constant // NESTED
            scale = tl.load(code_2 + tl.load(nested + constant, mask=real, other=0).to(tl.int32))
            scale = scale * tl.load(absmax_2 + group, mask=real, other=0.0)
            scale += tl.load(offset + group, mask=real, other=0.0)
        else:
            scale = tl.load(absmax + constant, mask=real, other=0.0)
        even = tl.load(code + (pair >> 4).to(tl.int32)).to(x.dtype.element_ty)  # the first of two is the upper half
        odd = tl.load(code + (pair & 15).to(tl.int32)).to(x.dtype.element_ty)
        place = x + m[:, None] * x_stride + begin + 2 * half[None, :]
        product = tl.dot(tl.load(place, mask=mine[:, None], other=0.0), tl.trans(even), input_precision=PRECISION)
        product = tl.dot(
            tl.load(place + 1, mask=mine[:, None], other=0.0), tl.trans(odd), product, input_precision=PRECISION
        )
        total += product * scale[None, :]
    place = partial + (split * rows + m).to(tl.int64)[:, None] * outputs + n[None, :]
    tl.store(place, total, mask=mine[:, None] & real[None, :])


@triton.jit(do_not_specialize=["rows"])
def _sum(partial, bias, result, rows, outputs, parts, BIAS: tl.constexpr, COLUMNS: tl.constexpr):
    """result (rows, outputs): the parts in their order, and the bias."""
    row = tl.program_id(0)
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real = n < outputs
    total = tl.zeros((COLUMNS,), tl.float32)
    for part in range(parts):
        total += tl.load(partial + (part * rows + row).to(tl.int64) * outputs + n, mask=real, other=0.0)
    if BIAS:
        total += tl.load(bias + n, mask=real, other=0.0)
    tl.store(result + row * outputs + n, total.to(result.dtype.element_ty), mask=real)


class SplitProduct:
    """x ↦ x Wᵀ + b for NF4 layers that share x; their weights and constants become views of one."""

    def __init__(self, layers: Sequence[Any], cores: int) -> None:
        states = [layer.weight.quant_state for layer in layers]
        self._layers = layers
        self._outputs = [layer.out_features for layer in layers]
        self._inputs = layers[0].in_features
        self._weights = torch.cat([layer.weight.data.view(-1) for layer in layers])
        self._code = states[0].code
        self._double = states[0].nested
        self._absmax = torch.cat([state.absmax for state in states])
        unused = self._absmax[:0].float()
        self._code_2, self._absmax_2, self._offset = (unused, unused, unused)
        if self._double:
            inner = [state.state2 for state in states]
            self._code_2 = inner[0].code
            self._absmax_2 = torch.cat([each.absmax for each in inner])
            self._offset = torch.cat([
                state.offset.float().expand(len(each.absmax)) for state, each in zip(states, inner, strict=True)
            ])  # fmt: skip
        self._bias = _joined([layer.bias for layer in layers], self._outputs)
        self._share()
        tiles = -(-sum(self._outputs) // OUTPUTS)
        parts = max(1, min(self._inputs // BLOCK, -(-PROGRAMS_PER_CORE * cores // tiles)))
        self._part = -(-self._inputs // BLOCK // parts) * BLOCK
        self._parts = -(-self._inputs // self._part)

    @classmethod
    def of(cls, layers: Sequence[nn.Linear]) -> "SplitProduct | None":
        """None where a layer is no NF4 in blocks of 64, or its constants would not stay whole beside the others'."""
        if not all(_fits(layer) for layer in layers) or len({_state(layer).nested for layer in layers}) > 1:
            return None
        device = layers[0].weight.device
        cores = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
        return cls(layers, cores)

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(rows, in) to (rows, out) of each layer; views of one tensor where the rows are neither few nor many."""
        rows = x.shape[0]
        if not LEAST <= rows <= MOST:
            return tuple(layer(x) for layer in self._layers)
        outputs = sum(self._outputs)
        x = x if x.stride(1) == 1 else x.contiguous()
        partial = torch.empty(self._parts, rows, outputs, dtype=torch.float32, device=x.device)
        _multiply[(-(-outputs // OUTPUTS), self._parts)](
            x, x.stride(0), self._weights, self._code, self._absmax, self._absmax, self._code_2, self._absmax_2,
            self._offset, partial, rows, outputs, self._inputs, self._part,
            PRECISION=precision(x), ROWS=max(16, power_of_two(rows)),
            OUTPUTS=OUTPUTS, BLOCK=BLOCK, NESTED=NESTED, DOUBLE=self._double,
        )  # fmt: skip
        result = x.new_empty(rows, outputs)
        bias = self._bias
        _sum[(rows, -(-outputs // COLUMNS))](
            partial, partial if bias is None else bias, result, rows, outputs, self._parts,
            BIAS=bias is not None, COLUMNS=COLUMNS,
        )  # fmt: skip
        return torch.split(result, self._outputs, dim=1) if len(self._outputs) > 1 else (result,)

    def _share(self) -> None:
        """Have the layers' own weights be views of the joined ones, so that memory holds them once."""
        begin = constant = group = 0
        for layer in self._layers:
            state, data = layer.weight.quant_state, layer.weight.data
            layer.weight.data = self._weights[begin : begin + data.numel()].view(data.shape)
            begin, count = begin + data.numel(), len(state.absmax)
            state.absmax = self._absmax[constant : constant + count]
            constant += count
            if self._double:
                groups = len(state.state2.absmax)
                state.state2.absmax = self._absmax_2[group : group + groups]
                group += groups


def _state(layer: Any) -> Any:
    return getattr(layer.weight, "quant_state", None)


def _fits(layer: Any) -> bool:
    state = _state(layer)
    if state is None or state.quant_type != "nf4" or state.blocksize != BLOCK or layer.in_features % BLOCK:
        return False
    if getattr(state, "packing_format_for_cpu", False):
        return False
    return not state.nested or (state.state2.blocksize == NESTED and len(state.absmax) % NESTED == 0)


def _joined(biases: Sequence[torch.Tensor | None], outputs: Sequence[int]) -> torch.Tensor | None:
    like = next((bias for bias in biases if bias is not None), None)
    if like is None:
        return None
    return torch.cat([
        like.new_zeros(count).float() if bias is None else bias.float()
        for bias, count in zip(biases, outputs, strict=True)
    ])  # fmt: skip
