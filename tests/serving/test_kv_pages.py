"""Pages are never lost, never given out twice, and free exactly when nobody holds them."""

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from swapmeet_serving.kv_pages import KvPages

COUNT = 12


class Pages(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pages = KvPages(COUNT, page_size=4)
        self.holders: list[list[int]] = []

    @rule(number=st.integers(0, COUNT + 2))
    def allocate(self, number: int) -> None:
        free = self.pages.free
        taken = self.pages.allocate(number)
        assert (taken is None) == (number > free)
        if taken is not None:
            assert len(set(taken)) == number
            assert not set(taken) & {page for held in self.holders for page in held}
            self.holders.append(taken)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.holders))
        part = held[: data.draw(st.integers(0, len(held)))]
        self.pages.share(part)
        self.holders.append(list(part))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pages.release(self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1))))

    @invariant()
    def every_page_is_held_or_free(self) -> None:
        held = Counter(page for holder in self.holders for page in holder)
        assert self.pages.free == COUNT - len(held)


TestPages = Pages.TestCase


def test_a_page_can_not_be_released_twice() -> None:
    pages = KvPages(2, page_size=4)
    taken = pages.allocate(1)
    assert taken is not None
    pages.release(taken)
    with pytest.raises(AssertionError, match="released twice"):
        pages.release(taken)
    with pytest.raises(AssertionError, match="is free"):
        pages.share(taken)


@pytest.mark.parametrize(("tokens", "pages"), [(1, 1), (4, 1), (5, 2), (8, 2)])
def test_how_many_pages_tokens_take(tokens: int, pages: int) -> None:
    assert KvPages(9, page_size=4).pages_for(tokens) == pages
