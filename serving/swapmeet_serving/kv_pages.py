"""Which pages of the KV cache are in use, by how many sequences, and which are kept in case they are wanted again.

A full page's keys and values depend on nothing but the tokens up to its end and what computed them: base, adapters
and weights. So pages form a tree: below a root for each way of computing, a node for each page's tokens in turn.
Looking a prefix up compares tokens, not hashes, and node numbers are never used twice, so what is found is what was
computed from these very tokens.
"""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence

Node = Hashable
"""A root, which callers choose and is no number, or the number of a page's node."""

_Key = tuple[Node, tuple[int, ...]]


class KvPages:
    """`count` pages of `page_size` tokens each. Knows numbers only; the tensors are the kernels'.

    A page is held by sequences, or idle (nobody holds it, but a prefix may be found on it), or empty. Idle pages are
    given out again, the one longest unused first, once no page is empty.
    """

    def __init__(self, count: int, page_size: int) -> None:
        self.count = count
        self.page_size = page_size
        self._empty = list(range(count - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._references = [0] * count
        self._nodes: dict[_Key, tuple[int, int]] = {}  # node number and page
        self._keys: dict[int, _Key] = {}  # by page
        self._numbers = itertools.count(1)

    @property
    def free(self) -> int:
        """How many pages nobody holds."""
        return len(self._empty) + len(self._idle)

    @property
    def idle(self) -> int:
        """How many pages nobody holds, but a prefix may be found on."""
        return len(self._idle)

    def pages_for(self, tokens: int) -> int:
        """How many pages that many tokens take."""
        return -(-tokens // self.page_size)

    def allocate(self, pages: int) -> list[int] | None:
        """Take so many pages, each with one reference; None, and nothing is taken, if there are too few."""
        if pages > self.free:
            return None
        taken = [self._empty.pop() if self._empty else self._forget_oldest() for _ in range(pages)]
        for page in taken:
            self._references[page] = 1
        return taken

    def find(self, root: Node, tokens: Sequence[int]) -> tuple[list[int], Node]:
        """The longest known prefix of these tokens in whole pages: its pages, each held once more, and its node."""
        found, node = [], root
        for begin in range(0, len(tokens) - self.page_size + 1, self.page_size):
            known = self._nodes.get((node, tuple(tokens[begin : begin + self.page_size])))
            if known is None:
                break
            node, page = known
            found.append(page)
        self._hold(found)
        return found, node

    def keep(self, parent: Node, tokens: Sequence[int], page: int) -> Node:
        """Have a full page that is held be found below its parent's node from now on; returns its own node.

        If another page with the same tokens is known there already, that one's node is returned, and it stays.
        """
        assert len(tokens) == self.page_size, "only full pages are shared"
        assert self._references[page] > 0, f"page {page} is free"
        key = (parent, tuple(tokens))
        if key not in self._nodes:
            self._nodes[key] = (next(self._numbers), page)
            self._keys[page] = key
        return self._nodes[key][0]

    def forget(self, pages: Iterable[int]) -> None:
        """Have held pages, and what follows them, be found no more; whoever holds them goes on."""
        for page in pages:
            assert self._references[page] > 0, f"page {page} is free"
            if page in self._keys:
                del self._nodes[self._keys.pop(page)]

    def forget_below(self, wanted: Callable[[Node], bool]) -> None:
        """Have nothing be found any more below the roots that are wanted; what nobody holds there is empty."""
        gone: set[Node] = set()
        for (parent, tokens), (node, page) in list(self._nodes.items()):  # parents before what follows them
            if parent in gone or (not isinstance(parent, int) and wanted(parent)):
                gone.add(node)
                del self._nodes[parent, tokens], self._keys[page]
                if page in self._idle:
                    del self._idle[page]
                    self._empty.append(page)

    def release(self, pages: Iterable[int]) -> None:
        """Give up one reference to each page of a sequence, in its order."""
        for page in reversed(list(pages)):  # so that the end of a prefix is given out before its beginning
            assert self._references[page] > 0, f"page {page} was released twice"
            self._references[page] -= 1
            if not self._references[page]:
                if page in self._keys:
                    self._idle[page] = None
                else:
                    self._empty.append(page)

    def _hold(self, pages: Iterable[int]) -> None:
        for page in pages:
            self._references[page] += 1
            self._idle.pop(page, None)

    def _forget_oldest(self) -> int:
        page, _ = self._idle.popitem(last=False)
        del self._nodes[self._keys.pop(page)]
        return page
