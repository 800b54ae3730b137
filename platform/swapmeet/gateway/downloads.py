"""What counts as a download: that a tenant was sent all bytes of a version's weights, in one answer or in several.

    the whole file                          counts
    parts that are the whole together       count once, when the last of them was sent
    a part, a HEAD, a 304, a listing        do not
    addresses that the store answers at     count when they are asked for: what the store sends is not seen here

Of what was sent so far each server remembers its own. So a download in parts by way of several servers is not counted,
unless one of them sent it all: rather too few than too many.
"""

import threading
from bisect import insort
from collections import OrderedDict
from collections.abc import Callable

from swapmeet_registry import Version

Count = Callable[[Version, str], None]
"""Called with a version that was downloaded, and by which tenant; once more on the same day changes nothing."""
Span = tuple[int, int]
KEPT = 10_000
"""Downloads in parts that are remembered; those that went on last."""
MOST_SPANS = 64
"""Parts with gaps between them, of one download; of one that has more nothing more is remembered."""


class Downloads:
    """What tenants were sent of versions' weights. For any thread.

    Args:
        count: counts a download.
    """

    def __init__(self, count: Count = lambda *_: None) -> None:
        self.count = count
        self._spans: OrderedDict[tuple[str, str], list[Span]] = OrderedDict()
        self._lock = threading.Lock()

    def sent(self, version: Version, tenant: str, size: int, start: int, end: int) -> None:
        """Note that a tenant was sent the bytes from `start` to before `end` of weights with `size` bytes."""
        if self._complete((version.digest, tenant), size, start, end):
            self.count(version, tenant)

    def _complete(self, key: tuple[str, str], size: int, start: int, end: int) -> bool:
        with self._lock:
            spans = _joined([*self._spans.pop(key, ()), (start, end)])
            if spans == [(0, size)]:
                return True
            if len(spans) <= MOST_SPANS:
                self._spans[key] = spans
            while len(self._spans) > KEPT:
                self._spans.popitem(last=False)
        return False


def _joined(spans: list[Span]) -> list[Span]:
    """The same bytes in as few spans as there can be, in order; the last one given may be anywhere."""
    ordered, new = spans[:-1], spans[-1]
    insort(ordered, new)
    found: list[Span] = []
    for start, end in ordered:
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found
