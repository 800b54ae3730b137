"""Room for adapters: within the budget, pinned ones stay, what is worth least goes first."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from swapmeet_serving.adapter_bank import AdapterBank
from swapmeet_serving.errors import AdapterTooLarge

BUDGET = 10
NAMES = [f"acme/{letter}" for letter in "abcdef"]


class Bank(RuleBasedStateMachine):
    """Compared with a plain model: sizes and pins."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = AdapterBank(BUDGET)
        self.sizes: dict[str, int] = {}
        self.pins: dict[str, int] = {}

    @rule(
        name=st.sampled_from(NAMES),
        size=st.integers(1, BUDGET),
        keep=st.sets(st.sampled_from(NAMES)),
        cost=st.floats(0, 10),
    )
    def reserve(self, name: str, size: int, keep: set[str], cost: float) -> None:
        if name in self.sizes:
            return
        order = list(self.bank)
        evicted = self.bank.reserve(name, size, keep, cost)
        removable = [other for other in order if not self.pins[other] and other not in keep]
        free = BUDGET - sum(self.sizes.values())
        if evicted is None:
            assert free + sum(self.sizes[other] for other in removable) < size
            return
        assert evicted == removable[: len(evicted)], "what is worth least first, and only what may go"
        freed = sum(self.sizes[other] for other in evicted)
        assert not evicted or free + freed - self.sizes[evicted[-1]] < size, "no more than needed"
        for other in evicted:
            del self.sizes[other], self.pins[other]
        self.sizes[name], self.pins[name] = size, 1

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.pins)))
        self.bank.pin(name)
        self.pins[name] += 1

    @precondition(lambda self: any(self.pins.values()))
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name, pins in self.pins.items() if pins]))
        self.bank.unpin(name)
        self.pins[name] -= 1

    @precondition(lambda self: 1 in self.pins.values())
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name, pins in self.pins.items() if pins == 1]))
        self.bank.drop(name)
        del self.sizes[name], self.pins[name]

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert sorted(self.bank) == sorted(self.sizes)
        assert self.bank.used == sum(self.sizes.values()) <= BUDGET


TestBank = Bank.TestCase


def in_use_once(bank: AdapterBank, name: str, size: int, cost: float = 1.0) -> None:
    assert bank.reserve(name, size, cost=cost) is not None
    bank.unpin(name)
    use(bank, name)


def use(bank: AdapterBank, name: str) -> None:
    bank.pin(name)
    bank.unpin(name)


def test_among_equals_the_one_longest_unused_goes_first() -> None:
    bank = AdapterBank(BUDGET)
    for name in "abc":
        in_use_once(bank, name, 2)
    for name in "bca":
        use(bank, name)
    assert list(bank) == ["b", "c", "a"]


def test_the_popular_the_small_and_what_loads_slowly_stay_longer() -> None:
    bank = AdapterBank(BUDGET)
    in_use_once(bank, "popular", 2)
    for _ in range(5):
        use(bank, "popular")
    in_use_once(bank, "slow", 2, cost=4.0)
    in_use_once(bank, "small", 1)
    in_use_once(bank, "plain", 2)
    assert list(bank) == ["plain", "small", "slow", "popular"]


def test_former_popularity_fades() -> None:
    bank = AdapterBank(2)
    in_use_once(bank, "hit", 1)
    for _ in range(20):
        use(bank, "hit")
    newcomers = 0
    while "hit" in bank:
        in_use_once(bank, f"new{newcomers}", 1)
        for _ in range(3):
            use(bank, f"new{newcomers}")
        newcomers += 1
        assert newcomers < 20


def test_what_exceeds_the_budget_is_refused_and_evicts_nothing() -> None:
    bank = AdapterBank(BUDGET)
    bank.reserve("acme/small", 4)
    bank.unpin("acme/small")
    with pytest.raises(AdapterTooLarge, match=r"acme/huge takes 11 bytes .* only 10"):
        bank.reserve("acme/huge", 11)
    assert "acme/small" in bank


def test_misuse_is_noticed() -> None:
    bank = AdapterBank(BUDGET)
    bank.reserve("acme/a", 1)
    with pytest.raises(AssertionError, match="has room already"):
        bank.reserve("acme/a", 1)
    bank.unpin("acme/a")
    with pytest.raises(AssertionError, match="not pinned"):
        bank.unpin("acme/a")
