"""LoRA for rows of many adapters at once, on CPU cores: y += x · down · up · scaling, each row by its own adapters.

Layers that share an input are computed together. An adapter's weights lie in one block of memory: the layers' `down`
side by side as (in, ranks), so that one product shrinks x for all of them, and each one's `up` as (rank, out), each at
its own rank. Every matrix stands there in blocks of as many columns as the widest tile has, one after the other, so
that it is read from its beginning to its end, as memory is fastest. Sums are float32, and rounded once. The cost is
that of the rows' own ranks; weights are read from memory once for every four rows of an adapter.
"""

from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numba import float32, int64

from swapmeet_serving.kernels.threads import SOURCES, Loop, parallel, thread, threads
from swapmeet_serving.kernels.tile import (
    ELEMENTS,
    LANES,
    ROWS,
    WIDE,
    add_to,
    address_as,
    float_of,
    load,
    store,
    tile,
    widen,
)

SEGMENT = 4
"""int64 of a segment: first row, last row + 1, address and number of its terms."""

TERM = 2
"""int64 of a term: address of its adapter's table, the bits of its weight."""

ENTRY, SCALING, COLUMN = 6, 3, 5
"""int64 of an adapter's table for each layer: addresses of the shared down and of up, rank (0: not adapted), the
scaling's bits, columns of the shared down, and the layer's first among them."""

HEAD, MEMBER = 7, 4
"""int64 of the arguments: of all layers, and of each."""


def _multiply_in(rows: int) -> Any:
    """out (4, columns) (+)= c (4, n) · matrix (n, columns), by tiles of the first so many rows.

    May read and write up to a tile too far.
    """
    tile_64, tile_48, tile_32, tile_16 = (tile(vectors * LANES, rows) for vectors in (4, 3, 2, 1))

    @numba.njit
    def multiply(
        c: Any, step: Any, size: Any, like: Any, matrix: Any, n: Any, columns: Any, out: Any, row: Any, add: Any
    ) -> None:
        one = int64(1)
        c0, c1 = address_as(c, float32(0)), address_as(c + 4 * step, float32(0))
        c2, c3 = address_as(c + 8 * step, float32(0)), address_as(c + 12 * step, float32(0))
        for begin in range(0, columns, WIDE):
            here, there = address_as(matrix + begin * n * size, like), address_as(out + 4 * begin, float32(0))
            left = min(columns - begin, int64(WIDE))
            if left > 3 * LANES:
                tile_64(c0, c1, c2, c3, one, here, left, n, there, row, add)
            elif left > 2 * LANES:
                tile_48(c0, c1, c2, c3, one, here, left, n, there, row, add)
            elif left > LANES:
                tile_32(c0, c1, c2, c3, one, here, left, n, there, row, add)
            else:
                tile_16(c0, c1, c2, c3, one, here, left, n, there, row, add)

    return multiply


_multiply_two, _multiply_four = _multiply_in(2), _multiply_in(ROWS)


@numba.njit
def _multiply(
    rows: Any, c: Any, step: Any, size: Any, like: Any, matrix: Any, n: Any, columns: Any, out: Any, row: Any, add: Any
) -> None:
    if rows <= 2:
        _multiply_two(c, step, size, like, matrix, n, columns, out, row, add)
    else:
        _multiply_four(c, step, size, like, matrix, n, columns, out, row, add)


@numba.njit
def _tile_of_rows(
    a: Any, first: Any, last: Any, terms: Any, n_terms: Any, like: Any, size: Any, wide: Any, inner: Any, sums: Any,
    begun: Any,
) -> None:  # fmt: skip
    """Up to four rows of one mix: sums (4, outs) over its adapters, then added to each layer's result."""
    begun[:] = 0
    rows, widened = last - first, False
    for term in range(n_terms):
        table = address_as(terms[term * TERM], int64(0))
        down, columns = _shrinks(a, table)
        if columns == 0:
            continue
        if not widened:
            _widen(a[0], size, like, a[1], a[2], first, last, wide)
            widened = True
        c, p, padded = wide.ctypes.data, inner.ctypes.data, int64(inner.shape[1])
        _multiply(rows, c, int64(wide.shape[1]), size, like, down, a[2], columns, p, padded, False)
        _expand(a, rows, table, float_of(terms[term * TERM + 1]), like, size, inner, sums, begun)
    begin = int64(0)
    for m in range(a[6]):
        out = a[HEAD + m * MEMBER + 3]
        if begun[m]:
            y, stride = a[HEAD + m * MEMBER + 1], a[HEAD + m * MEMBER + 2]
            _add(y, size, like, stride, out, first, last, sums, begin)
        begin += _padded(out)


@numba.njit
def _shrinks(a: Any, table: Any) -> tuple[Any, Any]:
    """Address and columns of an adapter's down for these layers; no columns if it has none."""
    for m in range(a[6]):
        entry = a[HEAD + m * MEMBER] * ENTRY
        if table[entry + 2]:
            return table[entry], table[entry + 4]
    return int64(0), int64(0)


@numba.njit
def _expand(
    a: Any, rows: Any, table: Any, weight: Any, like: Any, size: Any, inner: Any, sums: Any, begun: Any
) -> None:
    begin, padded = int64(0), int64(inner.shape[1])
    for m in range(a[6]):
        entry, out = a[HEAD + m * MEMBER] * ENTRY, a[HEAD + m * MEMBER + 3]
        rank, column = table[entry + 2], table[entry + COLUMN]
        if rank:
            factor = float_of(table[entry + SCALING]) * weight
            for r in range(rows):
                for j in range(column, column + rank):
                    inner[r, j] *= factor
            p, o = inner.ctypes.data + 4 * column, sums.ctypes.data + 4 * begin
            _multiply(rows, p, padded, size, like, table[entry + 1], rank, out, o, int64(sums.shape[1]), begun[m] != 0)
            begun[m] = 1
        begin += _padded(out)


@numba.njit
def _padded(columns: Any) -> Any:
    """Room for a layer's sums, which are written in whole tiles."""
    return (columns + WIDE - 1) // WIDE * WIDE


@numba.njit
def _widen(x: Any, size: Any, like: Any, stride: Any, n: Any, first: Any, last: Any, wide: Any) -> None:
    for r in range(ROWS):
        begin = min(first + r, last - 1) * stride
        vectors = n // LANES
        target = wide.ctypes.data + 4 * r * wide.shape[1]
        widen(address_as(x + begin * size, like), address_as(target, float32(0)), int64(vectors))
        for i in range(vectors * LANES, n):
            wide[r, i] = load(address_as(x, like), begin + i)


@numba.njit
def _add(y: Any, size: Any, like: Any, stride: Any, n: Any, first: Any, last: Any, sums: Any, column: Any) -> None:
    for r in range(last - first):
        begin, vectors = (first + r) * stride, n // LANES
        source = sums.ctypes.data + 4 * (r * sums.shape[1] + column)
        add_to(address_as(y + begin * size, like), address_as(source, float32(0)), int64(vectors))
        for c in range(vectors * LANES, n):
            here = address_as(y, like)
            store(here, begin + c, load(here, begin + c) + sums[r, column + c])


@numba.njit
def add_lora(a: Any, thread: Any, threads: Any, like: Any, size: Any) -> None:
    """Add every segment's adapters to the results of layers that share an input.

    Arguments: x, its stride of a row, in, segments, number of segments, ranks (at most, of all layers together),
    number of layers; then of each layer: its place in tables, y, its stride of a row, out.
    """
    outs = int64(0)
    for m in range(a[6]):
        outs += _padded(a[HEAD + m * MEMBER + 3])
    wide = np.empty((ROWS, a[2]), np.float32)
    inner = np.empty((ROWS, a[5] + WIDE), np.float32)
    sums = np.empty((ROWS, outs), np.float32)
    begun = np.empty(a[6], np.int64)
    segments = address_as(a[3], int64(0))
    turn = 0
    for s in range(a[4]):
        begin, end = segments[s * SEGMENT], segments[s * SEGMENT + 1]
        terms, n_terms = address_as(segments[s * SEGMENT + 2], int64(0)), segments[s * SEGMENT + 3]
        for first in range(begin, end, ROWS):
            if turn % threads == thread:
                stop = min(first + ROWS, end)
                _tile_of_rows(a, first, stop, terms, n_terms, like, size, wide, inner, sums, begun)
            turn += 1


@cache
def add_lora_in(dtype: torch.dtype) -> Loop:
    """`add_lora`, compiled for a dtype."""
    sources, like = SOURCES, ELEMENTS[dtype]
    size = dtype.itemsize

    def add(a: Any) -> None:
        sources  # noqa: B018 - captured, see `parallel`
        add_lora(a, thread(), threads(), like, size)

    return parallel(add)
