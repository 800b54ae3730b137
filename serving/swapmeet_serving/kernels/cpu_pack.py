"""Adapters' matrices into the form that the CPU's loops read: in their dtype, by blocks of WIDE columns.

One call for all matrices of an adapter, which holds no lock of Python's: requests that run are not held up.
"""

from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numba import float32, int64, uint16

from swapmeet_serving.kernels.threads import SOURCES, Loop, alone
from swapmeet_serving.kernels.tile import ELEMENTS, WIDE, address_as, load, store

MATRIX = 9
"""int64 of a matrix: its address and element's bytes (4: float32, 2: bfloat16), (rows, columns) and the strides of
both; address of the packed matrix that its columns become a part of, that one's columns, and the first of its own."""


def matrix(source: torch.Tensor, packed: int, columns: int, first: int) -> tuple[int, ...]:
    """The numbers of a matrix in float32 or bfloat16."""
    return (source.data_ptr(), source.element_size(), *source.shape, *source.stride(), packed, columns, first)


def packable(source: torch.Tensor) -> torch.Tensor:
    """In a dtype that is packed."""
    return source if source.dtype in ELEMENTS else source.float()


@numba.njit
def _pack(m: Any, begin: Any, like: Any, into: Any, size: Any) -> None:
    rows, columns, total, first = m[begin + 2], m[begin + 3], m[begin + 7], m[begin + 8]
    source = address_as(m[begin], like)
    for column in range(columns):
        block = (first + column) // WIDE
        width = min(int64(WIDE), total - block * WIDE)
        place = address_as(m[begin + 6] + size * (block * WIDE * rows + first + column - block * WIDE), into)
        for row in range(rows):
            store(place, row * width, load(source, row * m[begin + 4] + column * m[begin + 5]))


@cache
def pack_in(dtype: torch.dtype) -> Loop:
    """Packs matrices into a dtype; arguments: address of their numbers, how many."""
    sources, into = SOURCES, ELEMENTS[dtype]
    size = dtype.itemsize

    def pack(a: Any) -> None:
        sources  # noqa: B018 - captured, see `alone`
        matrices = address_as(a[0], int64(0))
        for number in range(a[1]):
            if matrices[number * MATRIX + 1] == 4:
                _pack(matrices, number * MATRIX, float32(0), into, size)
            else:
                _pack(matrices, number * MATRIX, uint16(0), into, size)

    return alone(pack)


def pack(matrices: list[tuple[int, ...]], dtype: torch.dtype) -> None:
    """Pack matrices, whose memory must last until this returns."""
    numbers = np.array(matrices, np.int64).reshape(-1, MATRIX)
    pack_in(dtype)([numbers.ctypes.data, len(numbers)])
