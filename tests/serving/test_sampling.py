"""Sampled tokens follow the distribution that their parameters describe, which is transformers'."""

from typing import Any

import pytest

from swapmeet_serving import Request, Sampling
from swapmeet_serving.errors import InvalidRequest
from swapmeet_serving.sequence import Sequence

VOCABULARY = 300
PROMPT = (5, 9, 9, 40, 299)
ANSWER = (9, 7, 7, 7, 0)


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
        ({"max_tokens": -1}, "max_tokens must not be below 0"),
        ({"temperature": -0.1}, "temperature must be between 0 and 2"),
        ({"temperature": float("nan")}, "temperature must be between 0 and 2"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_k": -1}, "top_k must be 0"),
        ({"min_p": 1.1}, "min_p must be between 0 and 1"),
        ({"presence_penalty": 2.1}, "presence_penalty must be between -2 and 2"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty must be between -2 and 2"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0"),
        ({"logit_bias": ((1, 0), (2, 101))}, "logit_bias must be between -100 and 100"),
        ({"logprobs": 21}, "at most 20 logprobs"),
        ({"prompt_logprobs": -1}, "at most 20 logprobs"),
        ({"stop": ("",)}, "stop texts must not be empty"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Sampling(**wrong)


def answering(sampling: Sampling, prompt: tuple[int, ...] = PROMPT, answer: tuple[int, ...] = ANSWER) -> Sequence:
    sequence = Sequence.of(Request("1", prompt, None, sampling), 100)
    for token in answer:
        sequence.append(token)
    return sequence


def random_logits(rows: int, seed: int = 0) -> Any:
    import torch

    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 40])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
@pytest.mark.parametrize("min_p", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("repetition_penalty", [1.0, 1.6, 0.7])
def test_the_distribution_is_that_of_transformers(
    temperature: float, top_k: int, top_p: float, min_p: float, repetition_penalty: float
) -> None:
    import torch
    from transformers import generation

    from swapmeet_serving.sampling import adjust, distribution

    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
    )
    processors: Any = [generation.RepetitionPenaltyLogitsProcessor(repetition_penalty)]
    processors.append(generation.TemperatureLogitsWarper(temperature))
    processors += [generation.TopKLogitsWarper(top_k)] if top_k else []
    processors += [generation.TopPLogitsWarper(top_p)] if top_p < 1 else []
    processors += [generation.MinPLogitsWarper(min_p)] if min_p else []
    logits = random_logits(1)
    expected = logits.clone()
    for process in processors:
        expected = process(torch.tensor([PROMPT + ANSWER]), expected)
    adjusted = adjust(logits, [answering(sampling)])
    probabilities, ids = distribution(adjusted[0], sampling)
    found = torch.zeros(VOCABULARY, dtype=probabilities.dtype).scatter(0, ids, probabilities)
    assert torch.allclose(found, expected[0].double().softmax(0), rtol=1e-5, atol=1e-9)
    assert (found > 0).tolist() == (expected[0] > -float("inf")).tolist()


def test_penalties_count_the_answer_alone() -> None:
    """OpenAI's formula: the logit less count * frequency_penalty, less presence_penalty where there is a count."""
    from swapmeet_serving.sampling import adjust

    logits = random_logits(1)
    adjusted = adjust(logits, [answering(Sampling(frequency_penalty=0.5, presence_penalty=1.25))])
    expected = logits.clone()
    for token, count in {9: 1, 7: 3, 0: 1}.items():
        expected[0, token] -= count * 0.5 + 1.25
    assert adjusted[0].tolist() == pytest.approx(expected[0].tolist())


def test_biases_come_before_penalties() -> None:
    from swapmeet_serving.sampling import adjust, choose

    logits = random_logits(1)
    sampling = Sampling(logit_bias=((7, -100), (200, 50), (5, 3)), repetition_penalty=2, frequency_penalty=1)
    adjusted = adjust(logits, [answering(sampling)])
    before = logits[0].double()
    assert float(adjusted[0, 7]) == pytest.approx(float((before[7] - 100) * 2 - 3), rel=1e-5)
    assert float(adjusted[0, 200]) == pytest.approx(float(before[200] + 50), rel=1e-5)
    biased = float(before[5] + 3)
    assert float(adjusted[0, 5]) == pytest.approx(biased * 2 if biased < 0 else biased / 2, rel=1e-5)
    assert choose(logits, [answering(Sampling(logit_bias=((123, 100),)))]) == [123]


def test_each_row_has_its_own_adjustments_and_the_logits_stay() -> None:
    import torch

    from swapmeet_serving.sampling import adjust, choose

    samplings = [
        Sampling(),
        Sampling(repetition_penalty=1.5),
        Sampling(temperature=1.1, seed=3, frequency_penalty=2, logit_bias=((8, 10),)),
        Sampling(temperature=0.9, seed=4),
        Sampling(presence_penalty=-2),
    ]
    group = [answering(each, answer=ANSWER[:count]) for count, each in enumerate(samplings)]
    logits = random_logits(len(group))
    before = logits.clone()
    together = adjust(logits, group)
    for row, each in enumerate(group):
        assert torch.equal(adjust(logits[row : row + 1], [each])[0], together[row])
    assert torch.equal(together[[0, 3]], logits[[0, 3]])
    assert choose(logits, group) == [choose(logits[row : row + 1], [each])[0] for row, each in enumerate(group)]
    assert torch.equal(logits, before)


def test_nothing_is_kept_up_for_requests_without_penalties() -> None:
    assert answering(Sampling(temperature=1, top_p=0.5, min_p=0.1, logprobs=3)).adjustments is None
    biased = answering(Sampling(logit_bias=((4, 1.0),))).adjustments
    assert biased is not None
    assert biased.ids.tolist() == [4]


def test_adjustments_kept_up_equal_a_recount() -> None:
    """What tokens added one by one leave is what counting them at once gives."""
    from collections import Counter

    from hypothesis import given
    from hypothesis import strategies as st

    tokens = st.lists(st.integers(0, 12)).map(tuple)

    @given(tokens, tokens, st.dictionaries(st.integers(0, 12), st.integers(-100, 100)), st.sampled_from([1.0, 1.3]))
    def check(prompt: tuple[int, ...], answer: tuple[int, ...], bias: dict[int, int], repetition: float) -> None:
        sampling = Sampling(
            presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=repetition, logit_bias=(*bias.items(),)
        )
        kept = answering(sampling, prompt, answer).adjustments
        assert kept is not None
        counts, seen = Counter(answer), {*prompt, *answer}
        found = dict(zip(kept.ids, zip(kept.bias, kept.factor, kept.deduction, strict=True), strict=True))
        assert len(found) == len(kept.ids)
        for token in range(13):
            expected = (
                bias.get(token, 0),
                repetition if token in seen else 1,
                0.25 * counts[token] + 0.5 * (token in counts),
            )
            assert found.get(token, (0, 1, 0)) == pytest.approx(expected)

    check()


def test_choices_have_seeds_of_their_own() -> None:
    seeded = Sampling(seed=7, temperature=1)
    assert seeded.of_choice(0) is seeded
    seeds = [seeded.of_choice(index).seed for index in range(128)]
    assert len(set(seeds)) == 128
    assert seeds == [seeded.of_choice(index).seed for index in range(128)]
    assert Sampling(temperature=1).of_choice(5).seed is None


@pytest.mark.parametrize("options", [{"min_p": 0.1}, {"top_p": 0.5}, {"top_k": 3, "top_p": 0.5}, {}])
def test_numbers_that_overflowed_still_give_a_token(options: dict[str, Any]) -> None:
    """One request's may not end the engine: an adapter's scaling can be anything, and so can a penalty."""
    import torch

    from swapmeet_serving.sampling import choose

    logits = torch.stack([torch.full((8,), torch.nan), torch.full((8,), torch.inf), torch.full((8,), -torch.inf)])
    tokens = choose(logits, sequences(Sampling(temperature=1, **options), range(3)))
    assert all(0 <= token < 8 for token in tokens)
    penalised = answering(Sampling(temperature=1, repetition_penalty=1e-300, **options))
    assert 0 <= choose(random_logits(1), [penalised])[0] < random_logits(1).shape[1]
