"""Whose turn it is."""

from hypothesis import given
from hypothesis import strategies as st

from swapmeet_serving import fair_share
from swapmeet_serving.fair_share import COST_OF_OUTPUT, FairShare


def test_what_is_served_counts_by_weight_and_kind() -> None:
    fair = FairShare()
    fair.arrive("a")
    fair.charge("a", 10, output=False, share=2.0)
    fair.charge("a", 1, output=True, share=0.5)
    assert fair.served("a") == 5 + 2 * COST_OF_OUTPUT


def test_nobody_saves_up_while_away() -> None:
    fair = FairShare()
    fair.arrive("busy")
    fair.charge("busy", 1000, output=False, share=1)
    fair.arrive("newcomer")
    assert fair.served("newcomer") == 1000
    fair.leave("newcomer")
    fair.charge("busy", 1000, output=False, share=1)
    fair.arrive("newcomer")
    assert fair.served("newcomer") == 2000
    fair.charge("newcomer", 5, output=False, share=1)
    fair.leave("newcomer")
    fair.arrive("newcomer")
    assert fair.served("newcomer") == 2005, "going away and coming back wins nothing"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50)), max_size=200))
def test_with_work_for_all_the_counters_stay_together(costs: list[tuple[str, int]]) -> None:
    """The bound of the paper: always serving the lowest, nobody is ahead by more than one job."""
    fair = FairShare()
    for tenant in "abc":
        fair.arrive(tenant)
    for _, cost in costs:
        fair.charge(min("abc", key=fair.served), cost, output=False, share=1)
        assert max(map(fair.served, "abc")) - min(map(fair.served, "abc")) <= 50


def test_only_so_many_tenants_are_remembered() -> None:
    fair = FairShare()
    fair.arrive("stays")
    for number in range(fair_share.MOST_REMEMBERED + 10):
        fair.arrive(str(number))
        fair.leave(str(number))
    assert len(fair._served) <= fair_share.MOST_REMEMBERED + 1
    assert "stays" in fair._served
