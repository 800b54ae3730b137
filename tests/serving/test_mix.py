"""Mixes of adapters, as requests write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapmeet_serving.errors import InvalidRequest
from swapmeet_serving.mix import Mix, format_mix, mix_of, parse_mix

NAMES = st.from_regex(r"[a-z0-9]{1,5}/[a-z0-9]([a-z0-9._-]{0,5}[a-z0-9])?(:[a-z0-9-]{1,5})?", fullmatch=True)
WEIGHTS = st.floats(-100, 100).map(lambda weight: float(f"{weight:.12g}")).filter(bool)


@pytest.mark.parametrize(
    ("text", "mix"),
    [
        ("acme/legal", (("acme/legal", 1.0),)),
        ("acme/legal*0.7+acme/french:prod*0.3", (("acme/legal", 0.7), ("acme/french:prod", 0.3))),
        ("acme/legal + acme/french * -.5", (("acme/legal", 1.0), ("acme/french", -0.5))),
        ("acme/legal*2e-1", (("acme/legal", 0.2),)),
    ],
)
def test_names_and_weights(text: str, mix: Mix) -> None:
    assert parse_mix(text) == mix


@given(st.lists(st.tuples(NAMES, WEIGHTS), min_size=1, max_size=8, unique_by=lambda term: term[0]).map(tuple))
def test_what_is_written_is_read_again(mix: Mix) -> None:
    assert parse_mix(format_mix(mix)) == mix


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acme/a*x", "'x' is no weight"),
        ("acme/a*0.5*2", r"'0.5\*2' is no weight"),
        ("acme/a*nan", "'nan' is no weight"),
        ("acme/a*1_0", "'1_0' is no weight"),
        ("acme/a*\u0661", "is no weight"),
        ("acme/a*1e999", "The weight of acme/a is inf"),
        ("acme/a*0", "The weight of acme/a is 0.0"),
        ("acme/a*101", "up to 100"),
        ("acme/a*0.5+acme/a*0.5", "names an adapter twice"),
        ("+".join(f"acme/{n}" for n in range(9)), "at most 8 adapters, and this one has 9"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        parse_mix(text)


def test_one_adapter_is_a_mix_of_one_and_none_is_empty() -> None:
    assert mix_of("acme/a") == (("acme/a", 1.0),)
    assert mix_of(None) == ()
