"""Room for adapters: within the budget, pinned ones stay, the least recently used go first."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from swapmeet_serving.adapter_bank import AdapterBank
from swapmeet_serving.errors import AdapterTooLarge

BUDGET = 10
NAMES = [f"acme/{letter}" for letter in "abcdef"]


class Bank(RuleBasedStateMachine):
    """Compared with a plain model: sizes, pins, and names in the order of last use."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = AdapterBank(BUDGET)
        self.sizes: dict[str, int] = {}
        self.pins: dict[str, int] = {}
        self.order: list[str] = []

    def has(self, pinned: bool) -> list[str]:
        return [name for name in self.order if bool(self.pins[name]) == pinned]

    @rule(name=st.sampled_from(NAMES), size=st.integers(1, BUDGET), keep=st.sets(st.sampled_from(NAMES)))
    def reserve(self, name: str, size: int, keep: set[str]) -> None:
        if name in self.sizes:
            return
        evicted = self.bank.reserve(name, size, keep)
        removable = [other for other in self.has(pinned=False) if other not in keep]
        free = BUDGET - sum(self.sizes.values())
        if evicted is None:
            assert free + sum(self.sizes[other] for other in removable) < size
            return
        assert evicted == removable[: len(evicted)], "least recently used first, and only what may go"
        freed = sum(self.sizes[other] for other in evicted)
        assert not evicted or free + freed - self.sizes[evicted[-1]] < size, "no more than needed"
        for other in evicted:
            self.order.remove(other)
            del self.sizes[other], self.pins[other]
        self.sizes[name], self.pins[name] = size, 1
        self.order.append(name)

    @precondition(lambda self: self.order)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.order))
        self.bank.pin(name)
        self.pins[name] += 1
        self.order.remove(name)
        self.order.append(name)

    @precondition(lambda self: self.has(pinned=True))
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.has(pinned=True)))
        self.bank.unpin(name)
        self.pins[name] -= 1

    @precondition(lambda self: 1 in self.pins.values())
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name, pins in self.pins.items() if pins == 1]))
        self.bank.drop(name)
        self.order.remove(name)
        del self.sizes[name], self.pins[name]

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert list(self.bank) == self.order
        assert self.bank.used == sum(self.sizes.values()) <= BUDGET


TestBank = Bank.TestCase


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
