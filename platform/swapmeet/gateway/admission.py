"""How many requests one caller may have under way, so that nobody's flood takes all places of the engines' queues."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from swapmeet_serving.errors import TooManyRequests


class Admission:
    """Counts requests under way by caller; for one event loop.

    Args:
        limit: most requests of one caller at once.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._under_way: Counter[str] = Counter()

    @contextmanager
    def admit(self, caller: str) -> Iterator[None]:
        """Count a request within the block.

        Raises:
            TooManyRequests: the caller has too many already.
        """
        if self._under_way[caller] >= self._limit:
            raise TooManyRequests(f"You have {self._limit} requests under way already. Wait for one to end.")
        self._under_way[caller] += 1
        try:
            yield
        finally:
            self._under_way[caller] -= 1
            if not self._under_way[caller]:
                del self._under_way[caller]
