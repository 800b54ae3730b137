"""Counting without an engine: buckets, the bounded ledger of adapters, the board and who posts to it."""

import asyncio
import threading
from bisect import bisect_right
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from swapmeet_serving.adapter_ledger import OTHER, AdapterLedger
from swapmeet_serving.board import Board, Poster
from swapmeet_serving.metrics import Family, Histogram, Snapshot, single

BOUNDS = st.lists(st.floats(-10, 10), unique=True, max_size=6).map(lambda bounds: tuple(sorted(bounds)))
VALUES = st.lists(st.tuples(st.floats(-20, 20), st.integers(1, 5)), max_size=20)


@given(BOUNDS, VALUES)
def test_buckets_hold_what_is_at_most_their_bound(bounds: tuple[float, ...], values: list[tuple[float, int]]) -> None:
    histogram = Histogram(bounds)
    for value, times in values:
        histogram.observe(value, times)
    every = sorted(value for value, times in values for _ in range(times))
    found = histogram.read()
    expected = [bisect_right(every, bound) for bound in bounds] + [len(every)]
    assert [count for _, count in found.cumulated()] == expected
    assert [float(name) for name, _ in found.cumulated()] == [*bounds, float("inf")]
    assert found.count == len(every)
    assert found.sum == pytest.approx(sum(every))


def digest(number: int) -> str:
    return f"{number:064x}"[::-1]


def identity(number: int) -> str:
    return f"acme/a{number}@sha256:{digest(number)}"


def points(families: list[Family], name: str) -> dict[tuple[str, ...], Any]:
    (family,) = [each for each in families if each.name == f"swapmeet_adapter_{name}"]
    return family.points


class Ledgers(RuleBasedStateMachine):
    """Whatever the traffic: series stay within the limit, and no count is lost while its adapter is in use."""

    @initialize(limit=st.integers(0, 4))
    def start(self, limit: int) -> None:
        self.limit, self.now = limit, 0.0
        self.ledger = AdapterLedger(limit, quiet=10, clock=lambda: self.now)
        self.total = 0
        self.kept: dict[str, float] = {}

    @rule(number=st.integers(0, 8))
    def request(self, number: int) -> None:
        self.ledger.of(identity(number)).requests += 1
        self.total += 1
        if (f"acme/a{number}", digest(number)[:12]) in self.requests():
            self.kept[identity(number)] = self.now

    @rule(seconds=st.sampled_from([1.0, 4.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    def requests(self) -> dict[tuple[str, ...], Any]:
        return points(self.ledger.families({}), "requests")

    @invariant()
    def series_are_bounded(self) -> None:
        found = self.requests()
        assert OTHER in found
        assert len(found) <= self.limit + 1
        assert sum(found.values()) <= self.total

    @invariant()
    def whoever_is_in_use_keeps_its_series(self) -> None:
        names = {name for name, _ in self.requests()}
        for each, used in self.kept.items():
            assert self.now - used >= 10 or each.split("@")[0] in names


TestLedgers = Ledgers.TestCase


def test_a_dropped_series_vanishes_and_is_not_counted_again() -> None:
    now = [0.0]
    ledger = AdapterLedger(limit=2, quiet=60, clock=lambda: now[0])
    for number in (1, 2, 3):
        ledger.of(identity(number)).requests += 10
    found = points(ledger.families({}), "requests")
    assert found == {("acme/a1", digest(1)[:12]): 10, ("acme/a2", digest(2)[:12]): 10, OTHER: 10}
    now[0] = 30
    ledger.of(identity(1)).requests += 1
    now[0] = 61  # a2 was quiet for a minute, a1 was not
    ledger.of(identity(3)).requests += 1
    found = points(ledger.families({}), "requests")
    assert found == {("acme/a1", digest(1)[:12]): 11, ("acme/a3", digest(3)[:12]): 1, OTHER: 10}


def test_residency_is_told_by_identity_or_by_hash() -> None:
    ledger = AdapterLedger(limit=2)
    for number in (1, 2):
        ledger.of(identity(number)).hits += 1
    families = ledger.families({"device": [identity(1), identity(7)], "disk": [digest(2), digest(8), digest(9)]})
    one, two = ("acme/a1", digest(1)[:12]), ("acme/a2", digest(2)[:12])
    assert points(families, "resident") == {
        (*one, "device"): 1, (*two, "device"): 0, (*OTHER, "device"): 1,
        (*one, "disk"): 0, (*two, "disk"): 1, (*OTHER, "disk"): 2,
    }  # fmt: skip


def snapshot(identifier: str, value: float = 1) -> Snapshot:
    return Snapshot("replica", identifier, (single("swapmeet_x", "gauge", "X.", value),))


def test_the_board_keeps_the_newest_and_forgets_who_is_silent() -> None:
    async def story() -> None:
        now = [0.0]
        board = Board(expiry=15, clock=lambda: now[0])
        await board.post(snapshot("one", 1))
        now[0] = 10
        await board.post(snapshot("two"))
        await board.post(snapshot("two", 2))
        assert await board.read() == [snapshot("one", 1), snapshot("two", 2)]
        now[0] = 20
        assert await board.read() == [snapshot("two", 2)]
        now[0] = 30
        assert await board.read() == []

    asyncio.run(story())


def test_a_poster_goes_on_after_a_failure() -> None:
    posted: list[Snapshot] = []
    enough = threading.Event()

    def post(one: Snapshot) -> None:
        posted.append(one)
        if len(posted) == 1:
            raise ConnectionError("the board is being restarted")
        enough.set()

    poster = Poster("replica", "one", lambda: snapshot("one").families, post, every=0.001)
    assert enough.wait(10)
    poster.close()
    assert posted[1] == snapshot("one")
