"""LoRA for rows of many adapters at once, on CPU cores: y += x · down · up · scaling, each row by its own adapter.

An adapter's weights lie in one block of memory, `down` as (in, rank) and `up` as (rank, out), each at its own
rank. Sums are float32, and rounded once. The cost is that of the rows' own ranks; weights are read from memory
once for every four rows of an adapter.
"""

from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numba import float32, int64

from swapmeet_serving.kernels.threads import SOURCES, Loop, parallel, thread, threads
from swapmeet_serving.kernels.tile import ELEMENTS, LANES, ROWS, WIDE, address_as, float_of, load, store, tile

_wide, _narrow = tile(WIDE), tile(LANES)

SEGMENT = 4
"""int64 of a segment: first row, last row + 1, address and number of its terms."""

TERM = 2
"""int64 of a term: address of its adapter's table, the bits of its weight."""

ENTRY = 4
"""int64 of an adapter's table for each module: addresses of down and up, rank (0: not adapted), scaling's bits."""


@numba.njit
def _multiply(
    c: Any, step: Any, width: Any, like: Any, matrix: Any, n: Any, columns: Any, out: Any, row: Any, add: Any
) -> None:
    """out (4, columns) (+)= c (4, n) · matrix (n, columns); may read and write up to a vector too far."""
    size = width * int64(1)
    for begin in range(0, columns, WIDE):
        here = address_as(matrix + begin * size, like)
        there = address_as(out + 4 * begin, float32(0))
        rows = (address_as(c, float32(0)), address_as(c + 4 * step, float32(0)),
                address_as(c + 8 * step, float32(0)), address_as(c + 12 * step, float32(0)))  # fmt: skip
        if columns - begin > WIDE - LANES:
            _wide(rows[0], rows[1], rows[2], rows[3], int64(1), here, columns, n, there, row, add)
        else:
            for block in range(begin, columns, LANES):
                here = address_as(matrix + block * size, like)
                there = address_as(out + 4 * block, float32(0))
                _narrow(rows[0], rows[1], rows[2], rows[3], int64(1), here, columns, n, there, row, add)


@numba.njit
def _tile_of_rows(
    a: Any, first: Any, last: Any, terms: Any, n_terms: Any, like: Any, width: Any, wide: Any, inner: Any, sums: Any
) -> None:
    y, n, out = address_as(a[1], like), a[2], a[3]
    begun = False
    for term in range(n_terms):
        table = address_as(terms[term * TERM] + a[6] * ENTRY * 8, int64(0))
        rank = table[2]
        if rank == 0:
            continue
        if not begun:
            _widen(address_as(a[0], like), n, first, last, wide)
        padded = int64(inner.shape[1])
        c, p, o = wide.ctypes.data, inner.ctypes.data, sums.ctypes.data
        _multiply(c, int64(wide.shape[1]), width, like, table[0], n, rank, p, padded, False)
        scaling = float_of(table[3]) * float_of(terms[term * TERM + 1])
        for r in range(ROWS):
            for j in range(rank):
                inner[r, j] *= scaling
        _multiply(p, padded, width, like, table[1], rank, out, o, int64(sums.shape[1]), begun)
        begun = True
    if begun:
        _add(y, out, first, last, sums)


@numba.njit
def _widen(x: Any, n: Any, first: Any, last: Any, wide: Any) -> None:
    for r in range(ROWS):
        row = min(first + r, last - 1)
        for i in range(n):
            wide[r, i] = load(x, row * n + i)


@numba.njit
def _add(y: Any, n: Any, first: Any, last: Any, sums: Any) -> None:
    for r in range(min(ROWS, last - first)):
        begin = (first + r) * n
        for c in range(n):
            store(y, begin + c, load(y, begin + c) + sums[r, c])


@numba.njit
def add_lora(a: Any, thread: Any, threads: Any, like: Any, width: Any) -> None:
    """Add every segment's adapters to y.

    Arguments: x, y, in, out, segments, number of segments, module, highest rank.
    """
    wide = np.empty((ROWS, a[2]), np.float32)
    inner = np.empty((ROWS, a[7] + WIDE), np.float32)
    sums = np.empty((ROWS, a[3] + WIDE), np.float32)
    segments = address_as(a[4], int64(0))
    turn = 0
    for s in range(a[5]):
        begin, end = segments[s * SEGMENT], segments[s * SEGMENT + 1]
        terms, n_terms = address_as(segments[s * SEGMENT + 2], int64(0)), segments[s * SEGMENT + 3]
        for first in range(begin, end, ROWS):
            if turn % threads == thread:
                _tile_of_rows(a, first, min(first + ROWS, end), terms, n_terms, like, width, wide, inner, sums)
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
