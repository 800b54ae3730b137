"""Pages are never lost, never given out while held, and a prefix is only found where its very tokens were kept."""

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from swapmeet_serving.kv_pages import KvPages, Node

COUNT, SIZE = 12, 2
ROOTS = ["base", "adapter"]
TOKENS = st.lists(st.integers(0, 1), max_size=12)


@dataclass(eq=False)
class Holder:
    """A sequence: its root, its tokens, and its pages, of which the first `shared` are known as prefixes."""

    root: str
    tokens: list[int]
    pages: list[int]
    node: Node
    shared: int


class Pages(RuleBasedStateMachine):
    """Against memory: what was last written on each page, as the root and all tokens up to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = KvPages(COUNT, SIZE)
        self.holders: list[Holder] = []
        self.memory: dict[int, tuple[str, tuple[int, ...]]] = {}
        self.spoilt: set[int] = set()

    @rule(root=st.sampled_from(ROOTS), tokens=TOKENS)
    def begin(self, root: str, tokens: list[int]) -> None:
        found, node = self.pages.find(root, tokens)
        assert not self.spoilt & set(found)
        for index, page in enumerate(found):
            assert self.memory[page] == (root, tuple(tokens[: (index + 1) * SIZE])), "another's keys and values"
        free = self.pages.free
        rest = self.pages.pages_for(len(tokens)) - len(found)
        taken = self.pages.allocate(rest)
        assert (taken is None) == (rest > free)
        if taken is None:
            self.pages.release(found)
            return
        assert not set(taken) & {page for holder in self.holders for page in holder.pages}
        self.spoilt -= set(taken)
        holder = Holder(root, tokens, found + taken, node, len(found))
        for index in range(len(found), len(holder.pages)):
            self.memory[holder.pages[index]] = (root, tuple(tokens[: (index + 1) * SIZE]))
        self.holders.append(holder)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def keep_a_page(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        begin = holder.shared * SIZE
        if begin + SIZE <= len(holder.tokens):
            page = holder.pages[holder.shared]
            holder.node = self.pages.keep(holder.node, holder.tokens[begin : begin + SIZE], page)
            holder.shared += 1

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pages.release(self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1))).pages)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def forget_and_release(self, data: st.DataObject) -> None:
        holder = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pages.forget(holder.pages)
        self.spoilt.update(holder.pages)
        self.pages.release(holder.pages)

    @invariant()
    def every_page_is_held_or_free(self) -> None:
        held = Counter(page for holder in self.holders for page in holder.pages)
        assert self.pages.free == COUNT - len(held)
        assert self.pages.idle <= self.pages.free

    def teardown(self) -> None:
        for holder in self.holders:
            self.pages.release(holder.pages)
        assert self.pages.free == COUNT
        assert self.pages.allocate(COUNT) is not None
        assert not self.pages._nodes
        assert not self.pages._keys


TestPages = Pages.TestCase


def kept(pages: KvPages, root: str, tokens: list[int]) -> list[int]:
    """Have these tokens cached, held by nobody."""
    found, node = pages.find(root, tokens)
    taken = found + (pages.allocate(len(tokens) // SIZE - len(found)) or [])
    for index in range(len(found), len(taken)):
        node = pages.keep(node, tokens[index * SIZE : (index + 1) * SIZE], taken[index])
    pages.release(taken)
    return taken


def test_a_prefix_is_found_under_its_own_root_only() -> None:
    pages = KvPages(COUNT, SIZE)
    taken = kept(pages, "base", [1, 2, 3, 4, 5, 6])
    assert pages.find("adapter", [1, 2, 3, 4])[0] == []
    assert pages.find("base", [1, 2, 3, 4, 7, 8])[0] == taken[:2]
    assert pages.find("base", [3, 4])[0] == []
    assert pages.find("base", [1])[0] == []


def test_the_ends_of_prefixes_unused_for_longest_are_given_out_first() -> None:
    pages = KvPages(4, SIZE)
    first = kept(pages, "base", [1, 1, 2, 2])
    second = kept(pages, "base", [3, 3, 4, 4])
    pages.release(pages.find("base", [1, 1])[0])  # used again
    assert pages.allocate(3) == [first[1], second[1], second[0]]
    assert pages.find("base", [1, 1, 2, 2])[0] == [first[0]]


def test_of_two_equal_prefixes_one_is_kept() -> None:
    pages = KvPages(COUNT, SIZE)
    one, other = pages.allocate(1), pages.allocate(1)
    assert one
    assert other
    assert pages.keep("base", [1, 1], one[0]) == pages.keep("base", [1, 1], other[0])
    pages.release(other)
    assert (pages.free, pages.idle) == (COUNT - 1, 0)
    pages.release(one)
    assert pages.find("base", [1, 1])[0] == one


def test_what_is_forgotten_is_not_found_and_whoever_holds_it_goes_on() -> None:
    pages = KvPages(COUNT, SIZE)
    first = kept(pages, "base", [1, 1, 2, 2, 3, 3])
    held, _ = pages.find("base", [1, 1, 2, 2])
    spoilt, _ = pages.find("base", [1, 1])
    pages.forget(spoilt)
    pages.release(spoilt)
    assert pages.find("base", [1, 1, 2, 2])[0] == []
    assert pages.allocate(COUNT - 2) is not None, "what followed it can be given out"
    pages.release(held)
    assert pages.free == 2
    assert held == first[:2]
    with pytest.raises(AssertionError, match="is free"):
        pages.forget(held)


def test_a_page_can_not_be_released_twice() -> None:
    pages = KvPages(2, SIZE)
    taken = pages.allocate(1)
    assert taken is not None
    pages.release(taken)
    with pytest.raises(AssertionError, match="released twice"):
        pages.release(taken)
    with pytest.raises(AssertionError, match="is free"):
        pages.keep("base", [1, 1], taken[0])


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_how_many_pages_tokens_take(tokens: int, pages: int) -> None:
    assert KvPages(9, page_size=4).pages_for(tokens) == pages
