"""Whose turn it is."""

from collections import OrderedDict
from collections.abc import Iterator

import pytest
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


def test_a_newcomer_at_a_quiet_moment_does_not_outrun_the_others_for_long() -> None:
    """The paper's case of an empty queue: who comes first begins where the last one stopped."""
    fair = FairShare()
    fair.arrive("busy")
    fair.charge("busy", 1_000_000, output=False, share=1)
    fair.leave("busy")
    fair.arrive("newcomer")
    fair.arrive("busy")
    assert fair.served("newcomer") == fair.served("busy") == 1_000_000


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
    assert len(fair._away) == fair_share.MOST_REMEMBERED
    assert len(fair._served) == len(fair._present) == 1


def test_who_is_remembered_is_known_from_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a list of who was served what, in the order in which they left."""
    most = 3
    monkeypatch.setattr(fair_share, "MOST_REMEMBERED", most)

    @given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans(), st.integers(1, 9)), max_size=200))
    def check(events: list[tuple[str, bool, int]]) -> None:
        fair = FairShare()
        present: dict[str, int] = {}
        served: dict[str, float] = {}
        away: list[str] = []
        left = 0.0
        for tenant, comes, cost in events:
            if comes:
                if tenant not in present:
                    known = served.get(tenant, 0.0) if tenant in away else 0.0
                    served[tenant] = max(known, min((served[each] for each in present), default=left))
                    away = [each for each in away if each != tenant]
                present[tenant] = present.get(tenant, 0) + 1
                fair.arrive(tenant)
            elif tenant in present:
                served[tenant] += cost
                fair.charge(tenant, cost, output=False, share=1)
                present[tenant] -= 1
                fair.leave(tenant)
                if not present[tenant]:
                    del present[tenant]
                    left = served[tenant]
                    away = [*away, tenant][-most:]
            for each in "abcdefgh":
                assert fair.served(each) == (served[each] if each in present or each in away else 0.0)

    check()


class Untouched(OrderedDict[str, float]):
    """Refuses to be gone through: what is done for one arrival must not grow with all who ever came."""

    def __iter__(self) -> Iterator[str]:
        raise AssertionError


def test_an_arrival_does_not_go_through_all_who_are_away() -> None:
    fair = FairShare()
    fair._away = Untouched()
    for number in range(fair_share.MOST_REMEMBERED + 10):
        fair.arrive(str(number))
        fair.leave(str(number))
    assert len(fair._away) == fair_share.MOST_REMEMBERED
