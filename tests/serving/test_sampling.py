"""Sampled tokens follow the distribution that their parameters describe."""

from typing import Any

import pytest

from swapmeet_serving import Request, Sampling
from swapmeet_serving.errors import InvalidRequest
from swapmeet_serving.sequence import Sequence


def plain_reference(logits: list[float], sampling: Sampling) -> dict[int, float]:
    """Probabilities by the book, without tensors."""
    import math

    weights = {token: math.exp(value / sampling.temperature) for token, value in enumerate(logits)}
    ranked = sorted(weights, key=lambda token: -weights[token])[: sampling.top_k or None]
    total, kept, reached = sum(weights[token] for token in ranked), [], 0.0
    for token in ranked:
        kept.append(token)
        reached += weights[token] / total
        if sampling.top_p < 1 and reached >= sampling.top_p:
            break
    total = sum(weights[token] for token in kept)
    return {token: weights[token] / total for token in kept}


@pytest.mark.parametrize("size", [50, 2_000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [1.0, 0.99, 0.5, 0.01])
@pytest.mark.parametrize("top_k", [0, 1, 7, 5_000])
def test_distribution(size: int, temperature: float, top_p: float, top_k: int) -> None:
    import torch

    from swapmeet_serving.sampling import distribution

    logits = torch.randn(size, generator=torch.Generator().manual_seed(size)) * 2
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    probabilities, ids = distribution(logits, sampling)
    expected = plain_reference(logits.tolist(), sampling)
    assert dict(zip(ids.tolist(), probabilities.tolist(), strict=True)) == pytest.approx(expected, rel=1e-5)


def sequences(sampling: Sampling, seeds: range) -> list[Sequence]:
    requests = [Request(str(seed), (1,), None, Sampling(**_fields(sampling) | {"seed": seed})) for seed in seeds]
    return [Sequence.of(request, 100) for request in requests]


def _fields(sampling: Sampling) -> dict[str, Any]:
    return {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k", "max_tokens")}


def test_frequencies_follow_the_distribution() -> None:
    import torch

    from swapmeet_serving.sampling import choose

    draws = 4_000
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0])
    sampling = Sampling(temperature=0.8, top_p=0.95)
    expected = plain_reference(logits.tolist(), sampling)
    drawn = choose(logits.expand(draws, -1), sequences(sampling, range(draws)))
    assert set(drawn) == set(expected)
    deviation = sum((drawn.count(t) - draws * p) ** 2 / (draws * p) for t, p in expected.items())
    assert deviation < 16.3, "chi-squared with 3 degrees of freedom exceeds this once in a thousand"


def test_a_draw_depends_on_its_own_row_seed_and_place_only() -> None:
    import torch

    from swapmeet_serving.sampling import choose

    logits = torch.randn(8, 300, generator=torch.Generator().manual_seed(0))
    group = sequences(Sampling(temperature=1.5), range(8))
    together = choose(logits, group)
    assert together == [choose(logits[row : row + 1], [each])[0] for row, each in enumerate(group)]
    for each in group:
        each.tokens.append(1)
    assert choose(logits, group) != together


def test_greedy_takes_the_likeliest() -> None:
    import torch

    from swapmeet_serving.sampling import choose

    logits = torch.randn(3, 300)
    assert choose(logits, sequences(Sampling(), range(3))) == logits.argmax(-1).tolist()


def test_a_tiny_temperature_is_greedy_too() -> None:
    import torch

    from swapmeet_serving.sampling import choose

    logits = torch.randn(1, 300) * 100
    assert choose(logits, sequences(Sampling(temperature=1e-300), range(1))) == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"temperature": -0.1}, "temperature must be between 0 and 2"),
        ({"temperature": float("nan")}, "temperature must be between 0 and 2"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_k": -1}, "top_k must be 0"),
        ({"stop": ("",)}, "stop texts must not be empty"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Sampling(**wrong)
