"""LoRA for rows of many adapters at once, on GPUs: y += x · down · up · scaling, each row by its own adapters.

Two kernels for all layers that share an input. The first shrinks x by the adapters' joined `down`, in parts of the
input's width, because there are too few rows to fill a GPU; the second sums the parts, always in the same order, and
expands them into every layer's result. Both go through blocks of up to `ROWS` neighbouring rows with one mix, and
through the mix's terms at their own ranks: nothing is padded but the tiles that tensor cores multiply. Grids depend on
how many blocks there may be and on nothing else, so that a CUDA graph replays them for whatever adapters come.

What differs from step to step or layer to layer is not specialised: each kernel would be compiled, for seconds in which
all wait, once for numbers that are 1, once for multiples of 16 and once for others.

All tables are int64; weights of terms and scalings stand in them as the bits of a float32.
"""

import torch
import triton
import triton.language as tl

from swapmeet_serving.kernels.gpu_tiles import precision

ROWS = 16
"""Rows of a block: as few as tensor cores take."""

BLOCK = 4
"""Numbers of a block: first row, rows (0: an empty block), first term, last term + 1."""

TERM = 2
"""Numbers of a term: address of its adapter's table, the weight's bits."""

ENTRY, RANK, SCALING = 6, 2, 3
"""Numbers of an adapter's table for each layer: addresses of the joined `down`, (columns, in), and of `up`,
(rank, out); rank (0: nothing on this layer), the scaling's bits, columns of the joined `down`, the first of its own."""

TILE = 4
"""Numbers of a tile of results: the layer's place in the tables, the first output, that output's column where the
layers' results stand side by side, and the layer's outputs."""

RANKS: int = 16
DEPTH: int = 128
OUTPUTS: int = 64
"""Tiles: ranks, inputs and outputs at a time."""

PART = 512
"""Inputs that one program shrinks at least: a part each, at most PARTS."""
PARTS = 16


@triton.jit(do_not_specialize=["place", "rows", "width"])
def _shrink(
    x, x_stride, inputs, blocks, terms, place, t, rows, width, part,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, RANKS: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK: tl.constexpr, TERM: tl.constexpr, ENTRY: tl.constexpr,
):  # fmt: skip
    """t (parts, rows, width): a row's terms side by side, x · down of the group of the layer at `place`."""
    block = blocks + tl.program_id(0) * BLOCK
    first, count = tl.load(block), tl.load(block + 1)
    low = tl.program_id(1) * part
    high = tl.minimum(low + part, inputs)
    mine = tl.arange(0, ROWS) < count
    row = first + tl.arange(0, ROWS)
    x += row[:, None] * x_stride
    t += (tl.program_id(1) * rows + row)[:, None] * width
    for term in range(tl.load(block + 2), tl.load(block + 3)):
        entry = tl.load(terms + term * TERM).to(tl.pointer_type(tl.int64)) + place * ENTRY
        down = tl.load(entry).to(tl.pointer_type(x.dtype.element_ty))
        columns = tl.load(entry + 4)
        for begin in range(0, columns, RANKS):
            column = begin + tl.arange(0, RANKS)
            total = tl.zeros((ROWS, RANKS), tl.float32)
            for depth in range(low, high, DEPTH):
                k = depth + tl.arange(0, DEPTH)
                values = tl.load(x + k[None, :], mask=mine[:, None] & (k < high)[None, :], other=0.0)
                within = (column < columns)[None, :] & (k < high)[:, None]
                weights = tl.load(down + column[None, :] * inputs + k[:, None], mask=within, other=0.0)
                total = tl.dot(values, weights, total, input_precision=PRECISION)
            tl.store(t + column[None, :], total, mask=mine[:, None] & (column < columns)[None, :])
        t += columns


@triton.jit(do_not_specialize=["rows", "width"])
def _expand(
    t, rows, width, parts, y, y_stride, blocks, terms, tiles, side_by_side,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, RANKS: tl.constexpr, OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr, TERM: tl.constexpr, ENTRY: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """y += the sum of t's parts · up · scaling · weight, for one tile of results."""
    block, tile = blocks + tl.program_id(0) * BLOCK, tiles + tl.program_id(1) * TILE
    first, count = tl.load(block), tl.load(block + 1)
    place, begin, outputs = tl.load(tile), tl.load(tile + 1), tl.load(tile + 3)
    mine = tl.arange(0, ROWS) < count
    row = first + tl.arange(0, ROWS)
    n = begin + tl.arange(0, OUTPUTS)
    t += row[:, None] * width
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for term in range(tl.load(block + 2), tl.load(block + 3)):
        entry = tl.load(terms + term * TERM).to(tl.pointer_type(tl.int64)) + place * ENTRY
        up = tl.load(entry + 1).to(tl.pointer_type(y.dtype.element_ty))
        rank = tl.load(entry + 2)
        scaling = tl.load(entry + 3).to(tl.int32).to(tl.float32, bitcast=True)
        weight = tl.load(terms + term * TERM + 1).to(tl.int32).to(tl.float32, bitcast=True)
        own = t + tl.load(entry + 5)
        for low in range(0, rank, RANKS):
            r = low + tl.arange(0, RANKS)
            inner = tl.zeros((ROWS, RANKS), tl.float32)
            for part in range(parts):
                some = own + part * rows * width + r[None, :]
                inner += tl.load(some, mask=mine[:, None] & (r < rank)[None, :], other=0.0)
            within = (r < rank)[:, None] & (n < outputs)[None, :]
            weights = tl.load(up + r[:, None] * outputs + n[None, :], mask=within, other=0.0)
            total = tl.dot(inner * (scaling * weight), weights.to(tl.float32), total, input_precision=PRECISION)
        t += tl.load(entry + 4)
    column = tl.where(side_by_side != 0, tl.load(tile + 2), begin) + tl.arange(0, OUTPUTS)
    y += row[:, None] * y_stride + column[None, :]
    within = mine[:, None] & (n < outputs)[None, :]
    tl.store(y, (tl.load(y, mask=within, other=0.0) + total).to(y.dtype.element_ty), mask=within)


def parts_of(inputs: int) -> tuple[int, int]:
    """In how many parts an input is shrunk, and how wide they are; depends on nothing else, for the sake of bits."""
    part = max(PART, -(-inputs // (PARTS * DEPTH)) * DEPTH)
    return -(-inputs // part), part


def shrink(x: torch.Tensor, blocks: torch.Tensor, terms: torch.Tensor, place: int, width: int) -> torch.Tensor:
    """(rows, in) to float32 (parts, rows, width), of which only what `blocks` and `terms` name is written."""
    rows, inputs = x.shape
    parts, part = parts_of(inputs)
    t = torch.empty(parts, rows, width, dtype=torch.float32, device=x.device)
    _shrink[(len(blocks), parts)](
        x, x.stride(0), inputs, blocks, terms, place, t, rows, width, part,
        PRECISION=precision(x), ROWS=ROWS, RANKS=RANKS, DEPTH=DEPTH, BLOCK=BLOCK, TERM=TERM, ENTRY=ENTRY,
    )  # fmt: skip
    return t


def expand(
    t: torch.Tensor, y: torch.Tensor, blocks: torch.Tensor, terms: torch.Tensor, tiles: torch.Tensor, *,
    side_by_side: bool,
) -> None:  # fmt: skip
    """Add `shrink`'s t to one layer's results (rows, out), or to those of several, in place."""
    parts, rows, width = t.shape
    _expand[(len(blocks), len(tiles))](
        t, rows, width, parts, y, y.stride(0), blocks, terms, tiles, int(side_by_side),
        PRECISION=precision(y), ROWS=ROWS, RANKS=RANKS, OUTPUTS=OUTPUTS,
        BLOCK=BLOCK, TERM=TERM, ENTRY=ENTRY, TILE=TILE,
    )  # fmt: skip
