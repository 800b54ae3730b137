"""What micro-batches look like before a run makes them."""

from hypothesis import given
from hypothesis import strategies as st

from swapmeet_training.plan import Batch, Row, RunSettings
from swapmeet_training.plan.batches import MANY_UNITS, Unit, micro_batches, packed_rows

LENGTHS = st.lists(st.integers(2, 200), min_size=1, max_size=60)


def unit(tokens: int, first: int = 1) -> Unit:
    return (Row(tokens, tokens - first, first),)


def test_a_batch_is_padded_to_its_longest_row() -> None:
    batch = Batch.of([unit(10, first=4), unit(30, first=20), unit(7, first=6)])
    assert batch == Batch(rows=3, length=30, tokens=47, trained=6 + 10 + 1, positions=26, masked=True)
    assert batch.padded == 90
    assert not Batch.of([unit(10), unit(10)]).masked
    assert Batch.of([unit(10), unit(10)], packed=True).masked


def test_the_first_token_of_a_row_is_predicted_from_nothing() -> None:
    assert Batch.of([(Row(5, 4, 0),)]).positions == 4


@given(lengths=LENGTHS, size=st.integers(1, 9), accumulation=st.integers(1, 4), steps=st.integers(1, 40))
def test_a_step_takes_what_it_should(lengths: list[int], size: int, accumulation: int, steps: int) -> None:
    settings = RunSettings(batch_size=size, gradient_accumulation=accumulation)
    units = [unit(length) for length in lengths]
    per_epoch = -(-len(units) // settings.per_step)
    epochs, left = divmod(steps, per_epoch)
    batches = micro_batches(units, settings, steps)
    assert all(batch.rows <= size for batch in batches)
    if not left:
        assert sum(batch.rows for batch in batches) == epochs * len(units)
        assert sum(batch.tokens for batch in batches) == epochs * sum(lengths)
        assert max(batch.length for batch in batches) == max(lengths)


def test_steps_are_split_longest_first_so_little_is_padding() -> None:
    units = [unit(length) for length in (10, 100) * 20]
    mixed = micro_batches(units, RunSettings(batch_size=8), 5)
    sorted_ = micro_batches(units, RunSettings(batch_size=4, gradient_accumulation=10), 1)
    assert sum(batch.padded for batch in sorted_) == sum(batch.tokens for batch in sorted_)
    assert sum(batch.padded for batch in mixed) > sum(batch.padded for batch in sorted_)


def test_the_longest_example_counts_however_long_the_run() -> None:
    units = [*[unit(5)] * (2 * MANY_UNITS), unit(900)]
    batches = micro_batches(units, RunSettings(batch_size=1000), steps=10_000)
    assert max(batch.length for batch in batches) == 900
    assert len(batches) < 100


@given(lengths=LENGTHS)
def test_packed_rows_hold_every_example_once(lengths: list[int]) -> None:
    rows = packed_rows([row for length in lengths for row in unit(length)], 200)
    assert sum(row.tokens for (row,) in rows) == sum(lengths)
    assert max(row.tokens for (row,) in rows) <= 200
    assert sum(row.trained for (row,) in rows) == sum(length - 1 for length in lengths)


def test_a_row_can_be_cut() -> None:
    assert Row(100, 40, 60).cut(50) == Row(50, 40, 49)
    assert Row(100, 99, 1).cut(1) == Row(1, 1, 0)
    assert Row(10, 5, 5).cut(50) == Row(10, 5, 5)
