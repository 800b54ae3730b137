"""Which pages of the KV cache are in use, with reference counts, so that sequences can share a prefix."""

from collections.abc import Iterable


class KvPages:
    """`count` pages of `page_size` tokens each. Knows numbers only; the tensors are the runner's."""

    def __init__(self, count: int, page_size: int) -> None:
        self.count = count
        self.page_size = page_size
        self._free = list(range(count - 1, -1, -1))
        self._references = [0] * count

    @property
    def free(self) -> int:
        """How many pages nobody holds."""
        return len(self._free)

    def pages_for(self, tokens: int) -> int:
        """How many pages that many tokens take."""
        return -(-tokens // self.page_size)

    def allocate(self, pages: int) -> list[int] | None:
        """Take so many pages, each with one reference; None, and nothing is taken, if there are too few."""
        if pages > len(self._free):
            return None
        taken = [self._free.pop() for _ in range(pages)]
        for page in taken:
            self._references[page] = 1
        return taken

    def share(self, pages: Iterable[int]) -> None:
        """Add a reference to pages that somebody holds already."""
        for page in pages:
            assert self._references[page] > 0, f"page {page} is free"
            self._references[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Give up one reference to each page; those without any are free again."""
        for page in pages:
            assert self._references[page] > 0, f"page {page} was released twice"
            self._references[page] -= 1
            if not self._references[page]:
                self._free.append(page)
