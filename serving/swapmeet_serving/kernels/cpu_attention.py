"""Attention over a paged KV cache on CPU cores, decode and prefill alike: one query is one row of a tile.

A page of 16 tokens holds keys as (kv heads, width, 16) and values as (kv heads, 16, width), so that both
products run along vectors. Scores, softmax and sums are float32; every query sums its own tokens in order. Later
tokens of its own sequence count zero times, so only a value that is not finite could be seen from before.
"""

from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numba import float32, int64

from swapmeet_serving.kernels import PAGE
from swapmeet_serving.kernels.threads import SOURCES, Loop, parallel, thread, threads
from swapmeet_serving.kernels.tile import ELEMENTS, ROWS, WIDE, address_as, exp, float_of, load, store, tile

SPAN = 4
"""int64 of a sequence's span: first row, number of rows, first row's position, address of its page table."""

_scores, _values = tile(PAGE), tile(WIDE)


@numba.njit
def write(a: Any, thread: Any, threads: Any, like: Any, size: Any) -> None:
    """Store the step's keys and values in their pages.

    Arguments: key, its strides of a head and of a token in elements, value, its strides, key pages, value
    pages, kv heads, width, spans, number of spans.
    """
    heads, width = a[8], a[9]
    spans = address_as(a[10], int64(0))
    for s in range(a[11]):
        first, count, position = spans[s * SPAN], spans[s * SPAN + 1], spans[s * SPAN + 2]
        pages = address_as(spans[s * SPAN + 3], int64(0))
        for unit in range(thread, count * heads, threads):
            token, head = unit // heads, unit % heads
            page, slot = pages[(position + token) // PAGE], (position + token) % PAGE
            block = (page * heads + head) * width * PAGE
            key = address_as(a[0] + (head * a[1] + (first + token) * a[2]) * size, like)
            value = address_as(a[3] + (head * a[4] + (first + token) * a[5]) * size, like)
            keys, values = address_as(a[6] + block * size, like), address_as(a[7] + block * size, like)
            for d in range(width):
                keys[d * PAGE + slot] = key[d]
                values[slot * width + d] = value[d]


@numba.njit
def attend(a: Any, thread: Any, threads: Any, like: Any, size: Any) -> None:
    """Attend from each row to its own sequence.

    Arguments: query, its stride of a head and of a token, out (rows, heads, width), key pages, value pages,
    kv heads, width, query heads of a kv head, scaling's bits, window (0: none), spans, number of spans, longest.
    """
    heads, group = a[6], a[8]
    spans = address_as(a[11], int64(0))
    padded = (a[7] + WIDE - 1) // WIDE * WIDE
    query = np.empty((ROWS, a[7]), np.float32)
    scores = np.empty((ROWS, (a[13] + PAGE) // PAGE * PAGE + PAGE), np.float32)
    sums = np.empty((ROWS, padded), np.float32)
    turn = 0
    for s in range(a[12]):
        count = spans[s * SPAN + 1] * group
        for head in range(heads):
            for begin in range(0, count, ROWS):
                if turn % threads == thread:
                    _tile_of_queries(a, s, head, begin, min(begin + ROWS, count), like, size, query, scores, sums)
                turn += 1


@numba.njit
def _tile_of_queries(
    a: Any, s: Any, head: Any, begin: Any, end: Any, like: Any, size: Any, query: Any, scores: Any, sums: Any
) -> None:
    """Up to four queries of one sequence and kv head, numbered by token and then by head within the group."""
    heads, width, group, window = a[6], a[7], a[8], a[10]
    spans = address_as(a[11] + s * SPAN * 8, int64(0))
    first, position, pages = spans[0], spans[2], address_as(spans[3], int64(0))
    source = address_as(a[0], like)
    for r in range(ROWS):
        index = min(begin + r, end - 1)
        place = (head * group + index % group) * a[1] + (first + index // group) * a[2]
        for d in range(width):
            query[r, d] = load(source, place + d)
    length = position + (end - 1) // group + 1
    start = max(int64(0), position + begin // group + 1 - window) // PAGE * PAGE if window else int64(0)
    q, p, o = query.ctypes.data, scores.ctypes.data, sums.ctypes.data
    row = int64(scores.shape[1])
    for t in range(start, length, PAGE):
        block = (pages[t // PAGE] * heads + head) * width * PAGE
        _scores(address_as(q, float32(0)), address_as(q + 4 * width, float32(0)),
                address_as(q + 8 * width, float32(0)), address_as(q + 12 * width, float32(0)), int64(1),
                address_as(a[4] + block * size, like), int64(PAGE), width,
                address_as(p + 4 * (t - start), float32(0)), row, False)  # fmt: skip
    scaling = float_of(a[9])
    for r in range(ROWS):
        index = min(begin + r, end - 1)
        seen = position + index // group + 1
        unseen = max(int64(0), seen - window) - start if window else int64(0)
        _softmax(address_as(p + 4 * r * row, float32(0)), unseen, seen - start, length - start, scaling)
    for t in range(start, length, PAGE):
        block = (pages[t // PAGE] * heads + head) * width * PAGE
        here, tokens = p + 4 * (t - start), min(int64(PAGE), length - t)
        for column in range(0, width, WIDE):
            matrix = address_as(a[5] + (block + column) * size, like)
            out = address_as(o + 4 * column, float32(0))
            _values(address_as(here, float32(0)), address_as(here + 4 * row, float32(0)),
                    address_as(here + 8 * row, float32(0)), address_as(here + 12 * row, float32(0)), int64(1),
                    matrix, width, tokens, out, int64(sums.shape[1]), t > start)  # fmt: skip
    out = address_as(a[3], like)
    for r in range(end - begin):
        index = begin + r
        place = ((first + index // group) * heads * group + head * group + index % group) * width
        for d in range(width):
            store(out, place + d, sums[r, d])


@numba.njit(fastmath={"reassoc", "contract", "nsz"})
def _softmax(scores: Any, unseen: Any, seen: Any, length: Any, scaling: Any) -> None:
    """In place: weights of the tokens from `unseen` to `seen`, and zero for those outside."""
    highest = scores[unseen]
    for t in range(unseen + 1, seen):
        highest = max(highest, scores[t])
    for t in range(unseen, seen):
        scores[t] = exp((scores[t] - highest) * scaling)
    total = float32(0)
    for t in range(unseen, seen):
        total += scores[t]
    for t in range(unseen, seen):
        scores[t] /= total
    for t in range(unseen):
        scores[t] = 0
    for t in range(seen, length):
        scores[t] = 0


@cache
def write_and_attend_in(dtype: torch.dtype) -> tuple[Loop, Loop]:
    """`write` and `attend`, compiled for a dtype."""
    sources, like = SOURCES, ELEMENTS[dtype]
    size = dtype.itemsize

    def write_pages(a: Any) -> None:
        sources  # noqa: B018 - captured, see `parallel`
        write(a, thread(), threads(), like, size)

    def attend_rows(a: Any) -> None:
        sources  # noqa: B018
        attend(a, thread(), threads(), like, size)

    return parallel(write_pages), parallel(attend_rows)
