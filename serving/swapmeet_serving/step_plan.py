"""What one forward pass computes: the step's tokens in one row, and who they belong to.

Built once a step. The tokens of all sequences are flattened into one row `[1, T]`: first the single tokens of
sequences that decode, then pieces of prompts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import torch

from swapmeet_serving.sequence import Slice

Terms = tuple[tuple[Any, float], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """One sequence's rows in a step.

    Attributes:
        start: its first row.
        stop: its last row + 1.
        position: the first row's place in its sequence; what is before it stands in the cache.
        pages: the sequence's pages, those of the new tokens included.
        terms: what the kernels hold of its adapters, each with its weight; empty for the bare base.
        kept: how many of its last rows are wanted as logits.
    """

    start: int
    stop: int
    position: int
    pages: list[int]
    terms: Terms
    kept: int = 1

    @property
    def rows(self) -> int:
        """How many tokens are computed."""
        return self.stop - self.start

    @property
    def length(self) -> int:
        """Tokens of the sequence after this step."""
        return self.position + self.rows


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step's tokens and everything that layers need to know of them.

    Attributes:
        tokens: (1, T) token ids, all sequences' one after the other.
        positions: (1, T) each token's place in its own sequence.
        kept: (k,) indices of the rows whose logits are wanted: of those computed to their end the last, or all.
        spans: the sequences' rows, in order.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    kept: torch.Tensor
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """Neighbouring rows `start:stop` of one mix, of which each sequence has `rows` (1 while decoding)."""

    start: int
    stop: int
    rows: int
    terms: Terms


def build_plan(slices: list[Slice], adapters: Callable[[str], Any]) -> StepPlan:
    """Lay out one step, on the host; `adapters` gives what the kernels hold of a pinned adapter."""
    stops = list(accumulate(each.count for each in slices))
    spans = tuple(_span(each, stop, adapters) for each, stop in zip(slices, stops, strict=True))
    tokens = [t for each in slices for t in each.tokens]
    return StepPlan(
        tokens=row(tokens)[None],
        positions=row([p for span in spans for p in range(span.position, span.length)])[None],
        kept=row([index for span in spans for index in range(span.stop - span.kept, span.stop)]),
        spans=spans,
    )


def kept_rows(spans: tuple[Span, ...]) -> list[tuple[int, int]]:
    """Each span's rows among those whose logits are wanted, as first and last + 1."""
    stops = list(accumulate(span.kept for span in spans))
    return [(stop - span.kept, stop) for span, stop in zip(spans, stops, strict=True)]


def mix_key(span: Span) -> tuple[tuple[int, float], ...]:
    """What spans of the same adapters and weights share."""
    return tuple((id(held), weight) for held, weight in span.terms)


def segments_of(spans: tuple[Span, ...], rows: list[tuple[int, int]]) -> Iterator[Segment]:
    """Neighbours with one mix and one row each share a segment; every longer span is one of its own.

    Spans without adapters, or without rows, have none.
    """

    def alike(pair: tuple[int, Span]) -> tuple[Any, int | None]:
        index, span = pair
        return mix_key(span), None if rows[index][1] - rows[index][0] == 1 else index

    for _, members in groupby(enumerate(spans), key=alike):
        indices = [index for index, _ in members]
        start, stop = rows[indices[0]][0], rows[indices[-1]][1]
        terms = spans[indices[0]].terms
        if terms and stop > start:
            yield Segment(start, stop, (stop - start) // len(indices), terms)


def _span(piece: Slice, stop: int, adapters: Callable[[str], Any]) -> Span:
    sequence = piece.sequence
    terms = tuple((adapters(identity), weight) for identity, weight in sequence.mix)
    kept = piece.count if sequence.wants_prompt_logits else int(piece.complete)
    return Span(stop - piece.count, stop, sequence.cached, sequence.pages, terms, kept)


def row(values: list[int], device: str = "cpu") -> torch.Tensor:
    """Integers as a tensor."""
    return torch.tensor(values, dtype=torch.long, device=device)
