"""Whose turn it is: tenants by how much was computed for them, each by its weight.

The virtual token counter of "Fairness in Serving Large Language Models" (Sheng et al., OSDI 2024): every tenant has a
counter of what it was served, whoever has the lowest goes first, and who comes back after a pause starts no lower
than the lowest of those who have been waiting or running, or than who was there last if nobody is, so that nobody
saves up.
"""

from collections import Counter, OrderedDict

COST_OF_OUTPUT = 4
"""What a generated token counts; one of a prompt counts 1, because many of them are computed at once."""

MOST_REMEMBERED = 10_000


class FairShare:
    """Counters of tenants. `arrive` and `leave` bracket each request, `charge` counts what it was given."""

    def __init__(self) -> None:
        self._served: dict[str, float] = {}  # of those with requests under way
        self._present: Counter[str] = Counter()
        self._away: OrderedDict[str, float] = OrderedDict()  # of the others, those longest away first
        self._left = 0.0  # the counter of who left last

    def arrive(self, tenant: str) -> None:
        """A tenant has one more request under way."""
        if tenant not in self._present:
            lowest = min(self._served.values(), default=self._left)
            self._served[tenant] = max(self._away.pop(tenant, 0.0), lowest)
        self._present[tenant] += 1

    def leave(self, tenant: str) -> None:
        """A tenant has one request less under way.

        Of those without any, the longest away are forgotten; they come back as new ones, which is never to their harm.
        """
        self._present[tenant] -= 1
        assert self._present[tenant] >= 0, f"{tenant!r} left more often than it came"
        if not self._present[tenant]:
            del self._present[tenant]
            self._away[tenant] = self._left = self._served.pop(tenant)
            if len(self._away) > MOST_REMEMBERED:
                self._away.popitem(last=False)

    def charge(self, tenant: str, tokens: int, *, output: bool, share: float) -> None:
        """Count tokens computed for a tenant that has a request under way."""
        self._served[tenant] += tokens * (COST_OF_OUTPUT if output else 1) / share

    def served(self, tenant: str) -> float:
        """A tenant's counter: the lower, the sooner it is its turn."""
        return self._served.get(tenant, self._away.get(tenant, 0.0))
