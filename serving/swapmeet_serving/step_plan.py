"""What one forward pass computes: the step's tokens in one row, and who they belong to.

Built once a step and read by every layer. The tokens of all sequences are flattened into one row `[1, T]`:
first the single tokens of sequences that decode, then whole prompts.

Every matrix product that touches an adapter or the cache has, per sequence, the shape that the sequence
alone would give it. So results depend neither on neighbours in the batch, nor differ from a plain
one-request `generate` by more than the arithmetic of the base's own layers does.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch

from swapmeet_serving.lora_weights import LoraWeights
from swapmeet_serving.sequence import Sequence


@dataclass(frozen=True, slots=True)
class LoraSegment:
    """Neighbouring rows `start:stop` of one adapter, multiplied `rows` at a time (1 while decoding)."""

    start: int
    stop: int
    rows: int
    weights: LoraWeights


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Sequences that decode and are equally long, so that none is padded.

    Attributes:
        rows: (n,) indices into the step's tokens.
        slots: (n, length) where each sequence's tokens stand in the cache, the present one last.
    """

    rows: torch.Tensor
    slots: torch.Tensor


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step's tokens and everything that layers need to know of them.

    Attributes:
        tokens: (1, T) token ids, all sequences' one after the other.
        positions: (1, T) each token's place in its own sequence.
        slots: (T,) where each token's keys and values go in the cache.
        last: (n,) index of each sequence's last token, whose logits are wanted.
        segments: rows by adapter, for the layers that see all T tokens.
        last_segments: the same for the output head, which sees the n last tokens only.
        groups: sequences that decode.
        prompts: first and last index + 1 of each whole prompt.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    last: torch.Tensor
    segments: tuple[LoraSegment, ...]
    last_segments: tuple[LoraSegment, ...]
    groups: tuple[DecodeGroup, ...]
    prompts: tuple[tuple[int, int], ...]


class CurrentStep:
    """Where the layers of one model find the plan of the forward pass under way."""

    plan: StepPlan | None = None


def build_plan(
    sequences: list[Sequence], page_size: int, weights: Callable[[str], LoraWeights], device: str = "cpu"
) -> StepPlan:
    """Lay out one step: sequences that decode first, one adapter's side by side, then whole prompts."""
    decoding = [each for each in sequences if each.decoding]
    assert sequences[: len(decoding)] == decoding, "sequences that decode come first"
    lengths = [len(each.tokens) - each.cached for each in sequences]
    stops = list(accumulate(lengths))
    spans = [(stop - length, stop) for length, stop in zip(lengths, stops, strict=True)]
    return StepPlan(
        tokens=_row([token for each in sequences for token in each.tokens[each.cached :]], device)[None],
        positions=_row([p for each in sequences for p in range(each.cached, len(each.tokens))], device)[None],
        slots=_row([slot for each in sequences for slot in _new_slots(each, page_size)], device),
        last=_row([stop - 1 for stop in stops], device),
        segments=tuple(_segments(sequences, spans, weights)),
        last_segments=tuple(_segments(sequences, [(n, n + 1) for n in range(len(sequences))], weights)),
        groups=tuple(_groups(decoding, page_size, device)),
        prompts=tuple(spans[len(decoding) :]),
    )


def _row(values: list[int], device: str) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.long, device=device)


def _new_slots(sequence: Sequence, page_size: int) -> Iterator[int]:
    for position in range(sequence.cached, len(sequence.tokens)):
        yield sequence.pages[position // page_size] * page_size + position % page_size


def _segments(
    sequences: list[Sequence], spans: list[tuple[int, int]], weights: Callable[[str], LoraWeights]
) -> Iterator[LoraSegment]:
    """Neighbours with one adapter and one row each share a segment; every longer span is one of its own."""

    def alike(pair: tuple[int, Sequence]) -> tuple[str | None, int | None]:
        index, sequence = pair
        return sequence.adapter, None if spans[index][1] - spans[index][0] == 1 else index

    for (adapter, _), members in groupby(enumerate(sequences), key=alike):
        indices = [index for index, _ in members]
        start, stop = spans[indices[0]][0], spans[indices[-1]][1]
        if adapter is not None:
            yield LoraSegment(start, stop, (stop - start) // len(indices), weights(adapter))


def _groups(decoding: list[Sequence], page_size: int, device: str) -> Iterator[DecodeGroup]:
    def length(row: int) -> int:
        return len(decoding[row].tokens)

    for count, members in groupby(sorted(range(len(decoding)), key=length), key=length):
        rows = list(members)
        tables = torch.tensor([decoding[row].pages[: -(-count // page_size)] for row in rows], device=device)
        slots = tables[:, :, None] * page_size + torch.arange(page_size, device=device)
        yield DecodeGroup(_row(rows, device), slots.flatten(1)[:, :count].contiguous())
