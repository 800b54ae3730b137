"""CPU cores: loops of our own for adapters and attention, which cost what the rows' own tokens and ranks cost.

Adapters are held in the model's dtype. What is added to a row, and what it attends to, does not depend on the rows
beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from swapmeet_serving.adapter_parts import Parts, PartsStep
from swapmeet_serving.errors import BaseUnsupported
from swapmeet_serving.kernels import PAGE
from swapmeet_serving.kernels.cpu_attention import write_and_attend_in
from swapmeet_serving.kernels.cpu_lora import ENTRY, MEMBER, SEGMENT, add_lora_in
from swapmeet_serving.kernels.cpu_pack import matrix, pack, packable
from swapmeet_serving.kernels.lora_block import Groups, add_parts, float_bits, places, size, up_of
from swapmeet_serving.kernels.tile import ELEMENTS, WIDE
from swapmeet_serving.lora_weights import LoraPairs
from swapmeet_serving.step_plan import Span, StepPlan, kept_rows, mix_key

Integers = npt.NDArray[np.int64]

PACKED_AT_ONCE = 128
"""Matrices: a call for each would cost more than the packing."""

SLACK = WIDE
"""Elements behind every block of memory: tiles are read whole, so up to WIDE - 1 too far."""


@dataclass(frozen=True, slots=True, eq=False)
class CpuLora:
    """An adapter in one block of memory.

    Attributes:
        block: all weights: for layers that share an input, their `down` side by side as (in, ranks), and then each
            one's `up` as (rank, out).
        table: (layers, ENTRY) for the loops, see there.
        parts: what else it changes.
    """

    block: torch.Tensor
    table: Integers
    parts: Parts


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Rows of a step by mix: the address and number of `segments`, which hold addresses of terms."""

    count: int
    segments: Integers
    address: int
    number: int

    @classmethod
    def of(cls, count: int, segments: Integers) -> "_Rows":
        """Find the address."""
        return cls(count, segments, segments.ctypes.data, len(segments))


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """What the loops need to know of a step; what addresses of stand in other arrays must live as long.

    Attributes:
        ranks: the highest of each layer.
    """

    terms: dict[Any, Integers]
    all: _Rows
    last: _Rows
    ranks: list[int]
    pages: list[Integers]
    spans: Integers
    longest: int
    parts: PartsStep | None


class CpuKernels:
    """Adapters and attention on CPU cores, in bfloat16 or float32.

    Raises:
        BaseUnsupported: the model computes in another dtype.
    """

    def __init__(
        self,
        pages: int,
        layers: dict[int, tuple[int, int]],
        dtype: torch.dtype,
        groups: Groups,
    ) -> None:
        if dtype not in ELEMENTS:
            raise BaseUnsupported(
                f"CPUs compute in bfloat16 or float32, not in {dtype}. Choose one of these, or exact."
            )
        self.pages = pages
        self.weight_bytes = dtype.itemsize
        self.whole = False
        self._dtype = dtype
        self._add = add_lora_in(dtype)
        self._write, self._attend = write_and_attend_in(dtype)
        self._groups = groups
        self._places = {name: place for place, name in enumerate(name for group in groups for name in group)}
        self._by_first = {next(iter(group)): [self._places[name] for name in group] for group in groups}
        self._cache = {
            index: tuple(torch.zeros(pages * heads * width * PAGE + SLACK, dtype=dtype) for _ in range(2))
            for index, (heads, width) in layers.items()
        }
        self._layout: _Layout | None = None

    def hold(self, pairs: LoraPairs, ranks: Mapping[str, int], parts: Parts) -> CpuLora:
        """Pack an adapter's weights."""
        parts, block = dict(parts), torch.empty(size(self._groups, ranks) + SLACK, dtype=self._dtype)
        begin, bytes_ = block.data_ptr(), self._dtype.itemsize
        table = np.zeros((len(self._places), ENTRY), np.int64)
        found = {place.name: place for place in places(self._groups, ranks)}
        matrices: list[tuple[int, ...]] = []
        sources: list[torch.Tensor] = []  # whose memory must last until they are packed
        for name, pair in pairs:
            place, down, up = found[name], packable(pair.down), packable(up_of(pair))
            addresses = begin + bytes_ * place.down, begin + bytes_ * place.up
            matrices += [
                matrix(down, addresses[0], place.columns, place.column),
                matrix(up, addresses[1], place.outputs, 0),
            ]
            scaling = float_bits(pair.scaling)
            table[self._places[name]] = (*addresses, place.rank, scaling, place.columns, place.column)
            add_parts(parts, name, pair, self._dtype)
            sources += [down, up]
            if len(sources) >= PACKED_AT_ONCE:
                pack(matrices, self._dtype)
                matrices, sources = [], []
        pack(matrices, self._dtype)
        return CpuLora(block, table, parts)

    def bring(self, packed: CpuLora) -> CpuLora:
        """It is there."""
        return packed

    def begin(self, plan: StepPlan) -> None:
        """Tables of numbers for the loops: rows by adapter, and each sequence's pages."""
        tables = [held.table for span in plan.spans for held, _ in span.terms]
        pages = [np.array(span.pages, np.int64) for span in plan.spans]
        terms, longest = _terms(plan.spans), max(span.length for span in plan.spans)
        whole = [(span.start, span.stop) for span in plan.spans]
        self._layout = _Layout(
            terms=terms,
            all=_Rows.of(plan.spans[-1].stop, _segments(plan.spans, whole, terms)),
            last=_Rows.of(len(plan.kept), _segments(plan.spans, kept_rows(plan.spans), terms)),
            ranks=np.max([table[:, 2] for table in tables], axis=0).tolist() if tables else [0] * len(self._places),
            pages=pages,
            spans=np.array(
                [
                    (span.start, span.rows, span.position, table.ctypes.data)
                    for span, table in zip(plan.spans, pages, strict=True)
                ],
                np.int64,
            ),
            longest=longest,
            parts=PartsStep.of(plan.spans),
        )

    def end(self) -> None:
        """Forget the layout."""
        if self._layout is not None and self._layout.parts is not None:
            self._layout.parts.close()
        self._layout = None

    def add_lora(self, shared: Any, x: torch.Tensor, results: Sequence[torch.Tensor]) -> None:
        """All rows' adapters in one go."""
        layout = self._layout
        assert layout is not None, "no step is under way"
        last = shared.rows == "last"
        if layout.parts is not None:
            for layer, result in zip(shared.layers, results, strict=True):
                layout.parts.change(layer.name, x, result, last=last)
        rows, ranks = layout.last if last else layout.all, 0
        members: list[int] = []
        for place, result in zip(self._by_first[shared.layers[0].name], results, strict=True):
            rank = layout.ranks[place]
            if rank:
                ranks += rank
                stride, one = result.stride()
                members += (place, result.data_ptr(), stride, result.shape[1])
                self._check(shared, result, rows.count, one)
        if not members:
            return
        x = x if x.stride(1) == 1 else x.contiguous()
        self._check(shared, x, rows.count, 1)
        head = (x.data_ptr(), x.stride(0), x.shape[1], rows.address, rows.number, ranks, len(members) // MEMBER)
        self._add([*head, *members])

    def _check(self, shared: Any, tensor: torch.Tensor, rows: int, stride: int) -> None:
        """The loops trust what they are given."""
        if tensor.dtype != self._dtype or tensor.size(0) != rows or stride != 1:
            name, shape = shared.layers[0].name, tuple(tensor.shape)
            raise RuntimeError(f"{name} has {shape} in {tensor.dtype} where {rows} rows were expected")

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
        """Every query against its own sequence's pages."""
        layout = self._layout
        assert layout is not None, "no step is under way"
        keys, values = (each.data_ptr() for each in self._cache[cast(int, module.layer_idx)])
        assert query.dtype == key.dtype == value.dtype == self._dtype
        query, key, value = (each if each.stride(-1) == 1 else each.contiguous() for each in (query, key, value))
        heads, rows, width = query.shape[1:]
        kv_heads = key.shape[1]
        spans = (layout.spans.ctypes.data, len(layout.spans))
        self._write([*_strided(key), *_strided(value), keys, values, kv_heads, width, *spans])
        result = query.new_empty(1, rows, heads, width)
        self._attend(
            [*_strided(query), result.data_ptr(), keys, values, kv_heads, width, heads // kv_heads,
             float_bits(width**-0.5 if scaling is None else scaling), sliding_window or 0, *spans, layout.longest]
        )  # fmt: skip
        return result


def _strided(tensor: torch.Tensor) -> tuple[int, int, int]:
    """Address, and strides of a head and of a token."""
    return tensor.data_ptr(), tensor.stride(1), tensor.stride(2)


def _terms(spans: tuple[Span, ...]) -> dict[Any, Integers]:
    """(n, 2) address of the adapter's table and the weight's bits, for every mix of the step."""
    return {
        mix_key(span): np.array([(held.table.ctypes.data, float_bits(weight)) for held, weight in span.terms], np.int64)
        for span in spans
    }


def _segments(spans: tuple[Span, ...], rows: list[tuple[int, int]], terms: dict[Any, Integers]) -> Integers:
    """(n, 4) first row, last row + 1, address and number of terms, for neighbours with one mix."""
    found = []
    for key, members in groupby(enumerate(spans), key=lambda pair: mix_key(pair[1])):
        indices = [index for index, _ in members]
        if key:
            found.append((rows[indices[0]][0], rows[indices[-1]][1], terms[key].ctypes.data, len(key)))
    return np.array(found, np.int64).reshape(-1, SEGMENT)
