"""From logits to tokens: greedy or sampled, each row on its own, and in the order that `Sampling` tells."""

import random

import torch

from swapmeet_serving.grammars import allowed
from swapmeet_serving.request import Sampling
from swapmeet_serving.sequence import Sequence

HEAD = 512
"""How many of the likeliest tokens are looked at first: sorting a whole vocabulary takes milliseconds."""


def choose(logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    """The next token of each sequence, from (n, vocabulary) logits, which stay as they are.

    A sampled token depends on its own logits, the sequence's seed and the token's place, and on nothing else.
    """
    logits = constrain(adjust(logits, sequences), sequences)
    tokens: list[int] = logits.argmax(-1).tolist()
    for row, sequence in enumerate(sequences):
        if sequence.request.sampling.temperature > 0:
            place = f"{sequence.seed}:{len(sequence.tokens)}"
            point = random.Random(place).random()  # noqa: S311 (repeatable, not secret)
            tokens[row] = _draw(*distribution(logits[row], sequence.request.sampling), point)
    return tokens


def not_finite(logits: torch.Tensor) -> list[int]:
    """Rows of (n, vocabulary) logits of the model's own that tell nothing: NaN or infinity, or nothing above -inf."""
    sound = logits.amax(-1).isfinite()  # NaN is the largest; one pass and one number, where all are sound
    return [] if bool(sound.all()) else (~sound).nonzero()[:, 0].tolist()


def adjust(logits: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
    """The logits with all rows' biases and penalties, in one go; the very same tensor where none has any."""
    given = [(row, each.adjustments) for row, each in enumerate(sequences) if each.adjustments and each.adjustments.ids]
    if not given:
        return logits
    width = logits.shape[1]
    places = torch.cat([torch.frombuffer(each.ids, dtype=torch.int64) + row * width for row, each in given])
    bias, factor, deduction = (
        torch.cat([torch.frombuffer(part, dtype=torch.float64) for part in parts]).to(logits)
        for parts in zip(*((each.bias, each.factor, each.deduction) for _, each in given), strict=True)
    )
    places = places.to(logits.device)
    adjusted = logits.clone()
    values = adjusted.view(-1)[places] + bias
    values = torch.where(values < 0, values * factor, values / factor)
    adjusted.view(-1)[places] = values - deduction
    return adjusted


def constrain(logits: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
    """The logits, with those at -inf that a sequence's grammar forbids; the very same tensor where none has one."""
    rows = [row for row, sequence in enumerate(sequences) if sequence.matcher]
    if not rows:
        return logits
    matchers = [sequence.matcher for sequence in sequences if sequence.matcher]
    forbidden = torch.from_numpy(~allowed(matchers, logits.shape[1])).to(logits.device)
    constrained = logits.clone()
    constrained[rows] = logits[rows].masked_fill(forbidden, -torch.inf)
    return constrained


def distribution(logits: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that may be drawn, as probabilities and token ids, after temperature, `top_k`, `top_p`, then `min_p`.

    `top_p` keeps the likeliest tokens up to and with the one that brings their sum to `top_p`.
    """
    probabilities, ids = _likeliest((logits - logits.max()).double() / sampling.temperature, sampling)
    if sampling.min_p:
        kept = ~(probabilities < sampling.min_p * probabilities.max())  # keeps NaN, of which one must be drawn, too
        probabilities, ids = probabilities[kept], ids[kept]
    return probabilities / probabilities.sum(), ids


def _likeliest(scaled: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """What `top_k` and `top_p` leave."""
    size = min(sampling.top_k or len(scaled), len(scaled))
    if sampling.top_p == 1:
        values, ids = torch.topk(scaled, size) if size < len(scaled) else (scaled, torch.arange(len(scaled)))
        return values.softmax(0), ids.to(scaled.device)
    values, ids = torch.topk(scaled, size) if sampling.top_k else _nucleus(scaled, sampling.top_p)
    total = values.logsumexp(0) if sampling.top_k else scaled.logsumexp(0)
    probabilities = (values - total).exp()
    kept = int((probabilities.cumsum(0) < sampling.top_p).sum()) + 1
    return probabilities[:kept], ids[:kept]


def _nucleus(scaled: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Enough of the likeliest tokens to hold `top_p`: a few, if they do, or all."""
    few, ids = torch.topk(scaled, min(HEAD, len(scaled)))
    if (few - scaled.logsumexp(0)).exp().sum() >= top_p:
        return few, ids
    return torch.sort(scaled, descending=True)


def _draw(probabilities: torch.Tensor, ids: torch.Tensor, point: float) -> int:
    """The token in whose share of the unit interval the point lies."""
    sums = probabilities.cumsum(0)
    place = int(torch.searchsorted(sums, point * sums[-1], right=True))
    return int(ids[min(place, len(ids) - 1)])
