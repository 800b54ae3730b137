"""The lengths of a file's examples, counted or estimated."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_training import DataError, load_dataset
from swapmeet_training.plan import Row, lengths
from swapmeet_training.plan.lengths import FEW, LONGEST, SAMPLE, lengths_of

Write = Callable[..., Path]


@pytest.fixture
def completion() -> Callable[[int], dict[str, str]]:
    def make(words: int) -> dict[str, str]:
        return {"prompt": "Say:", "completion": " fox" * words}

    return make


def test_few_examples_are_counted(make_spec: Callable[..., Any]) -> None:
    spec = make_spec()
    dataset = load_dataset(spec)
    training, held_out = lengths_of(spec)
    assert training.whole
    assert training.error == 0
    assert held_out is not None
    assert (training.examples, training.tokens) == (len(dataset.training), dataset.tokens)
    assert held_out.examples == len(dataset.held_out)
    sequence = dataset.training[0]
    first = sequence.labels.index(next(label for label in sequence.labels if label >= 0))
    assert training.units[0] == (Row(len(sequence.tokens), sequence.trained, first),)


def test_many_examples_are_sampled(make_spec: Callable[..., Any], write_jsonl: Write, completion: Any) -> None:
    chance = random.Random(1)
    words = [*(chance.randint(1, 30) for _ in range(4 * FEW)), 300]
    spec = make_spec(validation=None, data=write_jsonl("many.jsonl", *map(completion, words)))
    whole = load_dataset(spec)
    found, held_out = lengths_of(spec)
    assert held_out is None
    assert (found.examples, len(found.units), len(found.longest)) == (len(words), SAMPLE, LONGEST)
    assert not found.whole
    assert 0 < found.error < 0.05
    assert abs(found.tokens / whole.tokens - 1) < 2 * found.error
    assert found.longest[0][0].tokens == whole.longest
    assert found == lengths_of(spec)[0]


def test_the_stated_error_holds() -> None:
    """Of 200 samples of lines whose tokens scatter about their bytes, about 95 of 100 are within it."""
    chance = random.Random(2)
    lines = [
        (size, max(1, round(size * chance.uniform(0.1, 0.5)))) for size in chance.choices(range(10, 900), k=20_000)
    ]
    total, bytes_ = sum(tokens for _, tokens in lines), sum(size for size, _ in lines)
    within = 0
    for _ in range(200):
        tokens, error = lengths._estimated(chance.sample(lines, SAMPLE), bytes_, len(lines))
        within += abs(tokens - total) <= error
    assert within > 175


def test_mistakes_in_a_sample_are_told_with_their_line(
    make_spec: Callable[..., Any], write_jsonl: Write, completion: Any
) -> None:
    examples = [*([completion(3)] * (2 * FEW)), {"prompt": "x" * 4000}, completion(2)]
    spec = make_spec(validation=None, data=write_jsonl("bad.jsonl", *examples))
    with pytest.raises(DataError, match=rf"bad\.jsonl.*\n?.*line {2 * FEW + 1}"):
        lengths_of(spec)


def test_data_that_is_not_there_is_refused(make_spec: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can not be read"):
        lengths_of(make_spec(data=tmp_path / "none.jsonl"))
