"""GPUs: Triton kernels for adapters and attention, which cost what the rows' own tokens and ranks cost.

Adapters are held in the model's dtype. What is added to a row, and what it attends to, does not depend on the rows
beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from swapmeet_serving.adapter_parts import Parts, PartsStep
from swapmeet_serving.errors import BaseUnsupported
from swapmeet_serving.kernels import PAGE, gpu_attention, gpu_lora
from swapmeet_serving.kernels.gpu_step import Numbers, Sizes, Step, sections
from swapmeet_serving.kernels.lora_block import Groups, add_parts, float_bits, places, size, up_of
from swapmeet_serving.lora_weights import LoraPairs
from swapmeet_serving.step_plan import StepPlan

Flags = npt.NDArray[np.bool_]

WIDEST = 256
"""Of attention heads: a tile of wider ones does not fit into a core's memory."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedLora:
    """An adapter in one block of host memory.

    Attributes:
        block: for layers that share an input, their `down` joined as (ranks, in), and each one's `up` as (rank, out).
        table: (layers, ENTRY) for the kernels, with places in the block where they need addresses.
        widths: columns of the joined `down` of each group.
        parts: what else it changes, on the device.
    """

    block: torch.Tensor
    table: Numbers
    widths: Numbers
    parts: Parts


@dataclass(frozen=True, slots=True, eq=False)
class GpuLora:
    """An adapter in device memory.

    Attributes:
        block: as packed.
        table: with addresses in the block; on the device.
        adapted: which layers it has anything on.
    """

    block: torch.Tensor
    table: torch.Tensor
    widths: Numbers
    adapted: Flags
    parts: Parts


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """What the kernels need to know of a step; `adapted` has the layers that any row's adapters change, if known."""

    sizes: Sizes
    on_device: dict[str, torch.Tensor]
    adapted: Flags | None
    parts: PartsStep | None


class GpuKernels:
    """Adapters and attention on a GPU, in bfloat16, float16 or float32; at most `shared` query heads share a key.

    Raises:
        BaseUnsupported: the model computes in another dtype, or has too wide heads.
    """

    whole = False

    def __init__(
        self,
        pages: int,
        layers: dict[int, tuple[int, int]],
        dtype: torch.dtype,
        groups: Groups,
        device: str,
        shared: int,
    ) -> None:
        if dtype not in (torch.bfloat16, torch.float16, torch.float32):
            raise BaseUnsupported(f"GPUs compute in bfloat16, float16 or float32, not in {dtype}. Or choose exact.")
        widest = max((width for _, width in layers.values()), default=0)
        if widest > WIDEST:
            raise BaseUnsupported(f"Attention heads of {widest} are too wide: {WIDEST} is the most. Or choose exact.")
        self.pages = pages
        self.weight_bytes = dtype.itemsize
        self._dtype, self._device, self._groups = dtype, device, groups
        stream: Any = torch.cuda.Stream
        self._beside = None if device == "cpu" else stream(device)
        self._places = {name: place for place, name in enumerate(name for group in groups for name in group)}
        self._group_of = [index for index, group in enumerate(groups) for _ in group]
        self._tiles = {next(iter(group)): self._tiles_of(group) for group in groups}
        self._prompt_rows = gpu_attention.rows_of(shared)
        # one page more, for rows that are none
        self._cache = {
            index: cast(Any, tuple(torch.zeros(pages + 1, PAGE, *shape, dtype=dtype, device=device) for _ in range(2)))
            for index, shape in layers.items()
        }
        self._layout: Layout | None = None

    def hold(self, pairs: LoraPairs, ranks: Mapping[str, int], parts: Parts) -> PackedLora:
        """Pack an adapter's weights, in memory that the device can read."""
        parts, elements = dict(parts), size(self._groups, ranks)
        block = torch.zeros(elements, dtype=self._dtype, pin_memory=self._device != "cpu")
        table, widths = np.zeros((len(self._places), gpu_lora.ENTRY), np.int64), np.zeros(len(self._groups), np.int64)
        downs, ups = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
        for place in places(self._groups, ranks):
            down = block[place.down : place.down + place.inputs * place.columns].view(place.columns, place.inputs)
            downs[place.name] = down[place.column : place.column + place.rank]
            ups[place.name] = block[place.up : place.up + place.rank * place.outputs].view(place.rank, place.outputs)
            number = self._places[place.name]
            table[number] = (place.down, place.up, place.rank, 0, place.columns, place.column)
            widths[self._group_of[number]] = place.columns
        for name, pair in pairs:
            downs[name].copy_(pair.down.t())
            ups[name].copy_(up_of(pair))
            table[self._places[name], gpu_lora.SCALING] = float_bits(pair.scaling)
            add_parts(parts, name, pair, self._dtype, self._device)
        return PackedLora(block, table, widths, parts)

    def bring(self, packed: PackedLora) -> GpuLora:
        """Copy to the device, beside the steps under way, which do not wait for it.

        On one stream for all adapters: memory that one leaves is found again on its own stream only. No step uses it
        before this returns, and none is under way when it is let go, so the steps' stream needs not be told.
        """
        if self._beside is None:
            return self._placed(packed, packed.block.clone())
        with torch.cuda.stream(self._beside):
            held = self._placed(packed, packed.block.to(self._device, non_blocking=True))
            self._beside.synchronize()
        return held

    def _placed(self, packed: PackedLora, block: torch.Tensor) -> GpuLora:
        table = packed.table.copy()
        table[:, :2] = block.data_ptr() + self._dtype.itemsize * table[:, :2]
        return GpuLora(
            block, torch.from_numpy(table).to(self._device), packed.widths, table[:, gpu_lora.RANK] > 0, packed.parts
        )

    def step(self, plan: StepPlan) -> Step:
        """A step's numbers, on the host."""
        return Step(plan, self.pages * PAGE, self._prompt_rows)

    def begin(self, plan: StepPlan) -> None:
        """Bring the step's numbers to the device."""
        step = self.step(plan)
        numbers = torch.from_numpy(step.numbers(step.sizes)).to(self._device)
        held = {id(each): each for span in plan.spans for each, _ in span.terms}
        adapted = np.any([each.adapted for each in held.values()], axis=0) if held else None
        self.begin_with(Layout(step.sizes, sections(numbers, step.sizes), adapted, PartsStep.of(plan.spans)))

    def begin_with(self, layout: Layout) -> None:
        """Begin a step of which the numbers are on the device."""
        self._layout = layout

    def end(self) -> None:
        """Forget the layout."""
        if self._layout is not None and self._layout.parts is not None:
            self._layout.parts.close()
        self._layout = None

    def add_lora(self, shared: Any, x: torch.Tensor, results: Sequence[torch.Tensor]) -> None:
        """All rows' adapters in two launches, or one more for each layer whose result stands by itself."""
        layout = self._layout
        assert layout is not None, "no step is under way"
        last = shared.rows == "last"
        if layout.parts is not None:
            for layer, result in zip(shared.layers, results, strict=True):
                layout.parts.change(layer.name, x, result, last=last)
        first = shared.layers[0].name
        place, count = self._places[first], len(shared.layers)
        if not layout.sizes.width or (layout.adapted is not None and not layout.adapted[place : place + count].any()):
            return
        blocks, terms = layout.on_device["last_blocks" if last else "blocks"], layout.on_device["terms"]
        x = x if x.stride(1) == 1 else x.contiguous()
        self._check(first, x, *results, rows=layout.sizes.kept if last else layout.sizes.rows)
        t = gpu_lora.shrink(x, blocks, terms, place, layout.sizes.width)
        together, each = self._tiles[first]
        if _side_by_side(results):
            gpu_lora.expand(t, results[0], blocks, terms, together, side_by_side=True)
        else:
            for result, its in zip(results, each, strict=True):
                gpu_lora.expand(t, result, blocks, terms, its, side_by_side=False)

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
        assert query.dtype == key.dtype == value.dtype == self._dtype
        cache = self._cache[cast(int, module.layer_idx)]
        for pages, new in zip(cache, (key, value), strict=True):
            pages.view(-1, *pages.shape[2:])[layout.on_device["slots"]] = new[0].transpose(0, 1)
        query = query if query.stride(3) == 1 else query.contiguous()
        heads, rows, width = query.shape[1:]
        result = query.new_empty(1, rows, heads, width)
        for name, decoding in (("decoding", True), ("prompts", False)):
            blocks = layout.on_device[name]
            if len(blocks):
                gpu_attention.attend(
                    query[0], cache, blocks, layout.on_device["tables"], result[0], longest=layout.sizes.longest,
                    decoding=decoding, prompt_rows=self._prompt_rows, window=sliding_window or 0,
                    scaling=width**-0.5 if scaling is None else scaling,
                )  # fmt: skip
        return result

    def _check(self, name: str, *tensors: torch.Tensor, rows: int) -> None:
        """The kernels trust what they are given."""
        for tensor in tensors:
            if tensor.dtype != self._dtype or tensor.shape[0] != rows or tensor.stride(1) != 1:
                shape = tuple(tensor.shape)
                raise RuntimeError(f"{name} has {shape} in {tensor.dtype} where {rows} rows were expected")

    def _tiles_of(self, group: Mapping[str, tuple[int, ...]]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(tiles, TILE) of a group's layers together, and of each."""
        found, beside = [], 0
        for name, (outputs, _) in group.items():
            tiles = [(self._places[name], n, beside + n, outputs) for n in range(0, outputs, gpu_lora.OUTPUTS)]
            found.append(torch.tensor(tiles, dtype=torch.int64, device=self._device))
            beside += outputs
        return torch.cat(found), found


def _side_by_side(results: Sequence[torch.Tensor]) -> bool:
    """Whether results are columns of one tensor, each beginning where the one before ends."""
    begin = results[0].data_ptr()
    for result in results:
        if result.data_ptr() != begin or result.stride(0) != results[0].stride(0):
            return False
        begin += result.shape[1] * result.element_size()
    return len(results) > 1
