"""A step's numbers for the GPU's kernels: all of them in one array, so that one copy brings them to the device.

Sizes are those of the step, or any that are larger: then the rest of the array says that there is nothing, and a CUDA
graph that was captured with these sizes can be replayed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from swapmeet_serving.kernels import PAGE, gpu_attention, gpu_lora, slots
from swapmeet_serving.kernels.gpu_tiles import power_of_two
from swapmeet_serving.kernels.lora_block import float_bits
from swapmeet_serving.step_plan import Span, StepPlan, kept_rows, mix_key

Numbers = npt.NDArray[np.int64]
Bounds = list[tuple[int, int]]

COUNTS = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128)
"""Rows that graphs are captured for."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much room a step's numbers take.

    Attributes:
        rows: tokens that are computed.
        kept: rows whose logits are wanted.
        decoding: sequences of which one token is computed.
        prompts: blocks of the others.
        tables: sequences.
        pages: of the longest sequence.
        blocks: of rows with adapters.
        last_blocks: of those among the kept.
        terms: of all mixes.
        width: columns of all `down` that any row meets in any group of layers; 0 if there are no adapters.
    """

    rows: int
    kept: int
    decoding: int
    prompts: int
    tables: int
    pages: int
    blocks: int
    last_blocks: int
    terms: int
    width: int

    @property
    def longest(self) -> int:
        """Tokens that fit into the pages."""
        return self.pages * PAGE

    def sections(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes, in their order in the array."""
        yield from (("tokens", (self.rows,)), ("positions", (self.rows,)), ("slots", (self.rows,)))
        yield "kept", (self.kept,)
        yield from (
            ("decoding", (self.decoding, gpu_attention.BLOCK)),
            ("prompts", (self.prompts, gpu_attention.BLOCK)),
        )
        yield "tables", (self.tables, self.pages)
        yield from (("blocks", (self.blocks, gpu_lora.BLOCK)), ("last_blocks", (self.last_blocks, gpu_lora.BLOCK)))
        yield "terms", (self.terms, gpu_lora.TERM)

    def roomy(self) -> "Sizes":
        """Sizes of a graph that can be replayed for this step, in which every sequence decodes, and for many others."""
        rows = next((count for count in COUNTS if count >= self.rows), self.rows)
        return Sizes(
            rows=rows, kept=rows, decoding=rows, prompts=0, tables=rows, pages=power_of_two(self.pages), blocks=rows,
            last_blocks=rows, terms=power_of_two(max(rows, self.terms)),
            width=max(16, power_of_two(self.width)) if self.width else 0,
        )  # fmt: skip

    @property
    def total(self) -> int:
        """Numbers in all."""
        return sum(_room(shape) for _, shape in self.sections())


@dataclass(slots=True)
class Step:
    """One step's numbers on the host; `spare` is a slot of the cache that no sequence has.

    Blocks of prompts have up to `prompt_rows` rows.
    """

    plan: StepPlan
    spare: int
    prompt_rows: int
    sizes: Sizes = field(init=False)
    _blocks: list[tuple[int, ...]] = field(init=False)
    _last_blocks: list[tuple[int, ...]] = field(init=False)
    _terms: list[tuple[int, int]] = field(init=False)
    _prompts: list[tuple[int, ...]] = field(init=False)
    _decoding: list[tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        spans = self.plan.spans
        begins, self._terms = _terms(spans)
        self._blocks = list(_lora_blocks(spans, [(span.start, span.stop) for span in spans], begins))
        self._last_blocks = list(_lora_blocks(spans, kept_rows(spans), begins))
        self._decoding = [(s.start, 1, s.position, i) for i, s in enumerate(spans) if s.rows == 1]
        self._prompts = list(_prompt_blocks(spans, self.prompt_rows))
        self.sizes = Sizes(
            rows=spans[-1].stop,
            kept=len(self.plan.kept),
            decoding=len(self._decoding),
            prompts=len(self._prompts),
            tables=len(spans),
            pages=max(-(-span.length // PAGE) for span in spans),
            blocks=len(self._blocks),
            last_blocks=len(self._last_blocks),
            terms=len(self._terms),
            width=max(
                (int(sum(held.widths for held, _ in span.terms).max()) for span in spans if span.terms), default=0
            ),
        )

    def numbers(self, sizes: Sizes) -> Numbers:
        """All of them in an array of such sizes, which are at least the step's own."""
        array = np.zeros(sizes.total, np.int64)
        into = sections(array, sizes)
        into["slots"][:] = self.spare
        _put(into["tokens"], self.plan.tokens[0].numpy())
        _put(into["positions"], self.plan.positions[0].numpy())
        _put(into["slots"], [slot for span in self.plan.spans for slot in slots(span)])
        _put(into["kept"], self.plan.kept.numpy())
        for name, rows in (
            ("decoding", self._decoding), ("prompts", self._prompts), ("blocks", self._blocks),
            ("last_blocks", self._last_blocks), ("terms", self._terms),
        ):  # fmt: skip
            _put(into[name], rows)
        for line, span in zip(into["tables"], self.plan.spans, strict=False):
            _put(line, span.pages[: sizes.pages])
        return array


def sections(array: Any, sizes: Sizes) -> dict[str, Any]:
    """The parts of an array or tensor, by name, as views.

    Each begins at a multiple of 16 bytes: Triton compiles a kernel once for these, and once for all other addresses.
    """
    found, begin = {}, 0
    for name, shape in sizes.sections():
        found[name], begin = array[begin : begin + prod(shape)].reshape(shape), begin + _room(shape)
    return found


def _room(shape: tuple[int, ...]) -> int:
    """Numbers that a part takes, so that the next begins at a multiple of 16 bytes."""
    return prod(shape) + prod(shape) % 2


def _put(into: Numbers, values: object) -> None:
    rows = np.asarray(values, np.int64)
    if rows.size:
        into[: len(rows)] = rows


def _terms(spans: tuple[Span, ...]) -> tuple[dict[object, int], list[tuple[int, int]]]:
    """Where each mix's terms begin, and all terms: address of the adapter's table, bits of the weight."""
    begins: dict[object, int] = {}
    terms: list[tuple[int, int]] = []
    for span in spans:
        if mix_key(span) not in begins:
            begins[mix_key(span)] = len(terms)
            terms += [(held.table.data_ptr(), float_bits(weight)) for held, weight in span.terms]
    return begins, terms


def _lora_blocks(spans: tuple[Span, ...], rows: Bounds, begins: dict[object, int]) -> Iterator[tuple[int, ...]]:
    """Neighbouring rows with one mix, up to as many as a block takes."""
    for key, members in groupby(zip(spans, rows, strict=True), key=lambda pair: mix_key(pair[0])):
        bounds = [each for _, each in members]
        first, stop = bounds[0][0], bounds[-1][1]
        if key:
            for begin in range(first, stop, gpu_lora.ROWS):
                yield begin, min(gpu_lora.ROWS, stop - begin), begins[key], begins[key] + len(key)


def _prompt_blocks(spans: tuple[Span, ...], rows: int) -> Iterator[tuple[int, ...]]:
    for index, span in enumerate(spans):
        if span.rows > 1:
            for begin in range(span.start, span.stop, rows):
                yield begin, min(rows, span.stop - begin), span.position + begin - span.start, index
