"""The routing policy: adapters keep their places, hot ones spread, and nobody is drowned."""

from collections import Counter
from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from swapmeet_serving.routing import LIGHT, SLACK, Candidate, Replica, Report, rank

NAMES = [f"replica-{n}" for n in range(8)]
ADAPTERS = [f"acme/{n}@sha256:{n:064x}" for n in range(6)]

candidates = st.lists(st.sampled_from(NAMES), min_size=1, max_size=8, unique=True).flatmap(
    lambda names: st.tuples(
        *(
            st.builds(
                Candidate,
                name=st.just(name),
                load=st.integers(0, 200),
                adapters=st.frozensets(st.sampled_from(ADAPTERS)),
                full=st.booleans(),
            )
            for name in names
        )
    )
)
needs = st.lists(st.sampled_from(ADAPTERS), max_size=3).map(tuple)


def bound(replicas: tuple[Candidate, ...]) -> int:
    return max(LIGHT, ceil(SLACK * (sum(each.load for each in replicas) + 1) / len(replicas)))


@given(needs, candidates)
def test_every_replica_is_ranked_once_whatever_their_order(
    needs: tuple[str, ...], replicas: tuple[Candidate, ...]
) -> None:
    ranked = rank(needs, replicas)
    assert sorted(ranked) == sorted(each.name for each in replicas)
    assert rank(needs[::-1], replicas[::-1]) == ranked


@given(needs, candidates)
def test_nobody_is_chosen_over_the_bound_while_another_has_room(
    needs: tuple[str, ...], replicas: tuple[Candidate, ...]
) -> None:
    open_ones = {each.name for each in replicas if each.load < bound(replicas) and not each.full}
    first = rank(needs, replicas)[0]
    assert first in open_ones or not open_ones
    assert open_ones or any(each.full for each in replicas)  # somebody is below the mean


@given(needs.filter(bool), candidates)
def test_a_holder_with_room_comes_before_any_cold_replica(
    needs: tuple[str, ...], replicas: tuple[Candidate, ...]
) -> None:
    holders = {
        each.name
        for each in replicas
        if each.adapters.issuperset(needs) and each.load < bound(replicas) and not each.full
    }
    first = rank(needs, replicas)[0]
    assert first in holders or not holders


@given(candidates)
def test_the_bare_base_goes_to_the_least_busy(replicas: tuple[Candidate, ...]) -> None:
    first = next(each for each in replicas if each.name == rank((), replicas)[0])
    assert first.load == min(each.load for each in replicas if each.full == first.full)


@given(st.sampled_from(ADAPTERS), st.lists(st.sampled_from(NAMES), min_size=2, unique=True), st.data())
def test_a_cold_adapter_keeps_its_home_when_another_replica_goes(
    adapter: str, names: list[str], data: st.DataObject
) -> None:
    idle = [Candidate(name, 0) for name in names]
    home = rank((adapter,), idle)[0]
    gone = data.draw(st.sampled_from([name for name in names if name != home]))
    assert rank((adapter,), [each for each in idle if each.name != gone])[0] == home


def spread(calls: int, names: list[str], adapter: str) -> list[Replica]:
    """Send concurrent calls for one adapter, before any report."""
    replicas = {name: Replica(name) for name in names}
    load: Counter[str] = Counter()
    for _ in range(calls):
        first = rank((adapter,), [each.candidate(load[each.name], unsent=0) for each in replicas.values()])[0]
        replicas[first].send((adapter,))
        load[first] += 1
    return [each for each in replicas.values() if load[each.name]]


def test_a_cold_adapter_is_loaded_once_and_a_hot_one_on_as_many_replicas_as_it_takes() -> None:
    assert len(spread(LIGHT, NAMES, ADAPTERS[0])) == 1
    few, many = len(spread(3 * LIGHT, NAMES, ADAPTERS[0])), len(spread(40 * LIGHT, NAMES, ADAPTERS[0]))
    assert 1 < few < len(NAMES) / SLACK <= many


def test_adapters_that_are_cold_are_spread() -> None:
    homes = Counter(rank((f"acme/{n}",), [Candidate(name, 0) for name in NAMES])[0] for n in range(800))
    assert set(homes) == set(NAMES)
    assert max(homes.values()) < 2 * 800 / len(NAMES)


def test_a_mix_goes_where_most_of_it_is() -> None:
    parts = ADAPTERS[:2]
    half, whole = Candidate("a", 1, frozenset(parts[:1])), Candidate("b", 3, frozenset(parts))
    assert rank(parts, [half, whole]) == ["b", "a"]
    assert rank(parts, [half, Candidate("c", 0)]) == ["a", "c"]


def test_what_was_sent_counts_until_reports_must_show_it() -> None:
    replica = Replica("a")
    replica.send(["new"])
    assert replica.candidate(None, unsent=1) == Candidate("a", 1, frozenset({"new"}))
    replica.take(Report(1, adapters=("old",), running=2, waiting=3, free_pages=9))  # may have been made before
    assert replica.candidate(None, unsent=0) == Candidate("a", 5, frozenset({"old", "new"}))
    replica.take(Report(1, adapters=("old",), running=2, waiting=3, free_pages=9))  # seen already
    assert "new" in replica.candidate(None, unsent=0).adapters
    replica.take(Report(2, adapters=("old",), waiting=1))
    assert replica.candidate(7, unsent=1) == Candidate("a", 8, frozenset({"old"}), full=True)
