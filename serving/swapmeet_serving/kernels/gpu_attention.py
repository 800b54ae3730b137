"""Attention over the paged cache, on GPUs: softmax as it goes (arXiv 2205.14135), keys by pages (arXiv 2309.06180).

The cache is (pages, PAGE, heads, width) for keys, and for values. A program has a few neighbouring rows of one sequence
and all query heads that share a key, so that every key is read once for them. Single rows divide what they see into
parts of `PART` tokens, each computed by a program of its own and then summed in order: so a row's bits do not depend
on how long others are.
"""

import torch
import triton
import triton.language as tl

from swapmeet_serving.kernels import PAGE
from swapmeet_serving.kernels.gpu_tiles import power_of_two, precision

BLOCK = 4
"""Numbers of a block: first row, rows (0: an empty block), position of the first, row of its page table."""

PART: int = 512
"""Tokens that one program sees of a row that decodes."""

TILE_BYTES = 16 << 10
"""Of keys at a time, and as many of values: what every card's cores have room for, twice over."""

PROMPT_ROWS = 64
"""Rows times query heads in a block of a prompt."""


@triton.jit(do_not_specialize=["table_stride"])
def _attend(
    query, q_head, q_row, keys, values, blocks, tables, table_stride, result, sums, stats, part, scaling, window,
    PRECISION: tl.constexpr, GROUP: tl.constexpr, M: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    TOKENS: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Result (rows, heads, WIDTH); or, of blocks of single rows, sums and stats (parts, blocks, heads, WIDTH or 2)."""
    block = blocks + tl.program_id(0) * BLOCK
    kv_head, kv_heads, split = tl.program_id(1), tl.num_programs(1), tl.program_id(2).to(tl.int64)
    first, count, position = tl.load(block), tl.load(block + 1), tl.load(block + 2)
    table = tables + tl.load(block + 3) * table_stride
    m, d = tl.arange(0, M), tl.arange(0, PADDED)
    mine, real = m // GROUP < count, d < WIDTH
    row, head = first + m // GROUP, kv_head * GROUP + m % GROUP
    last = position + m // GROUP
    place = query + (row * q_row + head * q_head)[:, None] + d[None, :]
    q = tl.load(place, mask=mine[:, None] & real[None, :], other=0.0)
    low, high = split * part, tl.minimum((split + 1) * part, position + count)
    if window > 0:
        low = tl.maximum(low, (position + 1 - window) // TOKENS * TOKENS)
    peak = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    summed = tl.zeros((M, PADDED), tl.float32)
    for begin in range(low, high, TOKENS):
        token = begin + tl.arange(0, TOKENS)
        page = tl.load(table + token // PAGE, mask=token < high, other=0)
        slot = ((page * PAGE + token % PAGE) * kv_heads + kv_head) * WIDTH
        there = (token < high)[:, None] & real[None, :]
        k = tl.load(keys + slot[:, None] + d[None, :], mask=there, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scaling * 1.4426950408889634)
        seen = (token[None, :] <= last[:, None]) & (token < high)[None, :]
        if window > 0:
            seen = seen & (token[None, :] > last[:, None] - window)
        scores = tl.where(seen, scores, float("-inf"))
        now = tl.maximum(peak, tl.max(scores, 1))
        safe = tl.where(now == float("-inf"), 0.0, now)
        share, decay = tl.exp2(scores - safe[:, None]), tl.exp2(peak - safe)
        v = tl.load(values + slot[:, None] + d[None, :], mask=there, other=0.0)
        summed = summed * decay[:, None] + tl.dot(share.to(v.dtype), v, input_precision=PRECISION)
        total = total * decay + tl.sum(share, 1)
        peak = now
    mask = mine[:, None] & real[None, :]
    if WHOLE:
        total = tl.where(total == 0.0, 1.0, total)  # of rows that are none
        place = (row * kv_heads * GROUP + head)[:, None] * WIDTH + d[None, :]
        tl.store(result + place, (summed / total[:, None]).to(result.dtype.element_ty), mask=mask)
    else:
        line = (split * tl.num_programs(0) + tl.program_id(0)) * kv_heads * GROUP + head
        tl.store(sums + line[:, None] * WIDTH + d[None, :], summed, mask=mask)
        tl.store(stats + line * 2, peak, mask=mine)
        tl.store(stats + line * 2 + 1, total, mask=mine)


@triton.jit
def _join(
    sums, stats, blocks, result, part, heads,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row's parts, those that it has, in their order."""
    block = blocks + tl.program_id(0) * BLOCK
    row, count = tl.load(block), tl.load(block + 1)
    head = tl.program_id(1)
    d = tl.arange(0, PADDED)
    real = d < count * WIDTH  # nothing of a block that is empty
    peak, total = tl.full((), float("-inf"), tl.float32), tl.full((), 0.0, tl.float32)
    summed = tl.zeros((PADDED,), tl.float32)
    parts = tl.where(count > 0, tl.cdiv(tl.load(block + 2) + 1, part), 0)
    for split in range(parts):
        line = (split * tl.num_programs(0) + tl.program_id(0)) * heads + head
        its = tl.load(stats + line * 2)
        now = tl.maximum(peak, its)
        safe = tl.where(now == float("-inf"), 0.0, now)
        decay, gain = tl.exp2(peak - safe), tl.exp2(its - safe)
        summed = summed * decay + gain * tl.load(sums + line * WIDTH + d, mask=real, other=0.0)
        total = total * decay + gain * tl.load(stats + line * 2 + 1)
        peak = now
    place = (row * heads + head) * WIDTH + d
    total = tl.where(total == 0.0, 1.0, total)  # of rows that are none
    tl.store(result + place, (summed / total).to(result.dtype.element_ty), mask=real)


def attend(
    query: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor], blocks: torch.Tensor, tables: torch.Tensor,
    result: torch.Tensor, *, longest: int, decoding: bool, prompt_rows: int, scaling: float,
    window: int,
) -> None:  # fmt: skip
    """Fill the blocks' rows of the result.

    Args:
        query: (heads, rows, width).
        cache: keys and values.
        blocks: of rows of one sequence each.
        tables: (sequences, pages).
        result: (rows, heads, width), contiguous.
        longest: no sequence has more tokens.
        decoding: whether blocks are single rows.
        prompt_rows: the most rows of a block otherwise.
        scaling: of scores.
        window: how many tokens a row sees, itself included; 0 for all.
    """
    heads, _, width = query.shape
    kv_heads = cache[0].shape[2]
    group = heads // kv_heads
    parts = -(-longest // PART) if decoding else 1
    part = PART if decoding else longest
    sums, stats = (
        torch.empty(parts if parts > 1 else 0, len(blocks), heads, last, dtype=torch.float32, device=query.device)
        for last in (width, 2)
    )
    tile = power_of_two(group if decoding else prompt_rows * group)
    _attend[(len(blocks), kv_heads, parts)](
        query, query.stride(0), query.stride(1), *cache, blocks, tables, tables.stride(0), result, sums, stats,
        part, scaling, window, PRECISION=precision(query), GROUP=group, M=max(16, tile), WIDTH=width,
        PADDED=max(16, power_of_two(width)), TOKENS=tokens_of(width, query.element_size()), PAGE=PAGE, BLOCK=BLOCK,
        WHOLE=parts == 1,
    )  # fmt: skip
    if parts > 1:
        _join[(len(blocks), heads)](
            sums, stats, blocks, result, part, heads, WIDTH=width, PADDED=power_of_two(width), BLOCK=BLOCK
        )


def tokens_of(width: int, element: int) -> int:
    """Tokens at a time, where heads are so wide: 64, or what TILE_BYTES hold."""
    return min(64, max(16, TILE_BYTES // (max(16, power_of_two(width)) * element)))


def rows_of(group: int) -> int:
    """Rows in a block of a prompt, where so many query heads share a key."""
    return max(1, PROMPT_ROWS // group)
