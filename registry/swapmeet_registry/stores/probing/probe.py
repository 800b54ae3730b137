"""Certify a store before it is trusted: whether it keeps what the registry builds on.

Many servers accept the headers of conditional writes and do not honour them; they lose updates late and silently. So
this races writers against each other and looks at what comes of it, in a place of its own that is gone afterwards.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from swapmeet_registry.errors import Conflict, Refused, StoreDenied, StoreError
from swapmeet_registry.stores.opening import open_store
from swapmeet_registry.stores.probing.promises import Broken, Lacking, Promise, Promises
from swapmeet_registry.stores.probing.scratch import scratch
from swapmeet_registry.stores.probing.store_promises import store_promises

ROUNDS = 50
THREADS = 8


@dataclass(frozen=True, slots=True)
class Check:
    """One promise: what became of it and, unless it was kept, what was seen.

    Attributes:
        outcome: `passed`; `failed`; `lacking`, which the registry can do without; or `skipped`.
    """

    name: str
    outcome: str
    seen: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a probe found out about a store."""

    url: str
    checks: tuple[Check, ...]

    @property
    def certified(self) -> bool:
        """Whether nothing failed, and so nothing was skipped."""
        return all(check.outcome in ("passed", "lacking") for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"url": self.url, "certified": self.certified, "checks": [asdict(check) for check in self.checks]}


def probe(
    url: str, *, rounds: int = ROUNDS, threads: int = THREADS, tell: Callable[[Check], None] = lambda _: None
) -> Certificate:
    """Try what a store promises; nothing stays of it.

    Args:
        url: `file:///FOLDER`, `s3://BUCKET/PREFIX` or `hf://ORGANIZATION`.
        rounds: of each race.
        threads: that race.
        tell: is told each check's outcome at once.

    Raises:
        InvalidName: the URL is of no known kind.
        StoreError: the store can not be reached, or refuses these credentials; that says nothing of its promises.
    """
    checks: list[Check] = []

    def note(check: Check) -> None:
        checks.append(check)
        tell(check)

    with _promises(url, rounds, threads) as promises:
        for name, promise in promises.alone:
            note(_tried(name, promise))
        # Races in a store that does not even keep its promises to a single writer tell nothing, and may never end.
        broken = any(check.outcome == "failed" for check in checks)
        for name, promise in promises.races:
            note(Check(name, "skipped", "What failed before makes it pointless.") if broken else _tried(name, promise))
    return Certificate(url, tuple(checks))


@contextmanager
def _promises(url: str, rounds: int, threads: int) -> Iterator[Promises]:
    if urlsplit(url).scheme == "hf":
        from swapmeet_registry.stores.probing.hub_promises import hub_promises

        with hub_promises(url, rounds, threads) as promises:
            yield promises
        return
    with scratch(open_store(url)) as place:
        promises = store_promises(place, rounds, threads)
        if urlsplit(url).scheme == "s3":
            from swapmeet_registry.stores.probing.s3_promises import s3_promises

            promises = Promises((*promises.alone, *s3_promises(place)), promises.races)
        yield promises


def _tried(name: str, promise: Promise) -> Check:
    start, outcome, seen = time.monotonic(), "passed", ""
    try:
        promise()
    except Lacking as error:
        outcome, seen = "lacking", str(error)
    except StoreDenied:
        raise
    except (Broken, Conflict, Refused, StoreError) as error:
        outcome, seen = "failed", str(error)
    return Check(name, outcome, seen, round(time.monotonic() - start, 3))
