"""Counts per adapter, for a bounded number of adapters: thousands of them must not become thousands of series.

Up to `limit` adapters have series of their own, and keep them while they are in use. A newcomer to a full ledger
takes the place of the adapter that was quiet longest, if that is `QUIET_SECONDS` or more; the dropped series
vanish, as if their process had ended. Without such a place it counts under `OTHER`. So both the series at one
time and how fast they change are bounded, and rates summed over all adapters are those of the engine: what was
counted once is never moved to another series, where it would look like new traffic.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from swapmeet_serving.metrics import Family, Histogram, Kind, Points, Value

LIMIT = 200
QUIET_SECONDS = 300.0
OTHER = ("other", "")
LABELS = ("adapter", "digest")
DIGITS = 12


@dataclass(slots=True)
class AdapterCounts:
    """What one adapter did; `loads` has the seconds of each loading step."""

    requests: int = 0
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    loads: dict[str, Histogram] = field(default_factory=dict)
    used: float = 0.0


class AdapterLedger:
    """The counts of the adapters that have series of their own, and of all others together."""

    def __init__(
        self, limit: int = LIMIT, quiet: float = QUIET_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._quiet = quiet
        self._clock = clock
        self._rows: OrderedDict[str, AdapterCounts] = OrderedDict()  # the longest quiet first
        self._other = AdapterCounts()
        self._lock = threading.Lock()  # rows come and go while another thread reads them

    def of(self, identity: str) -> AdapterCounts:
        """Where to count an adapter's traffic."""
        with self._lock:
            now = self._clock()
            row = self._rows.get(identity) or self._make_row(identity, now)
            if row is not self._other:
                self._rows.move_to_end(identity)
                row.used = now
            return row

    def families(self, tiers: Mapping[str, Collection[str]]) -> list[Family]:
        """All counts, and which adapters each tier holds, by identity or hash alone."""
        with self._lock:
            rows = {_label(identity): row for identity, row in self._rows.items()}
            own = {identity: _label(identity) for identity in self._rows}
        rows[OTHER] = self._other

        def family(name: str, kind: Kind, text: str, value: Callable[[AdapterCounts], Value]) -> Family:
            return Family(
                f"swapmeet_adapter_{name}", kind, text, LABELS, {label: value(row) for label, row in rows.items()}
            )

        return [
            family("requests", "counter", "Requests that ended.", lambda row: row.requests),
            family("hits", "counter", "Requests that found the adapter in memory.", lambda row: row.hits),
            family("misses", "counter", "Requests that had to wait for a load.", lambda row: row.misses),
            family("evictions", "counter", "Times it left memory for another.", lambda row: row.evictions),
            family("load_failures", "counter", "Loads that failed.", lambda row: row.failures),
            family("prompt_tokens", "counter", "Prompt tokens of ended requests.", lambda row: row.prompt_tokens),
            family("generated_tokens", "counter", "Tokens made by ended requests.", lambda row: row.generated_tokens),
            _loads(rows),
            _residency(own, tiers),
        ]

    def _make_row(self, identity: str, now: float) -> AdapterCounts:
        if len(self._rows) >= self._limit:
            quietest = next(iter(self._rows.values()), None)
            if quietest is None or now - quietest.used < self._quiet:
                return self._other
            self._rows.popitem(last=False)
        return self._rows.setdefault(identity, AdapterCounts())


def _label(identity: str) -> tuple[str, str]:
    """`TENANT/NAME` and the start of the digest, so that series add up by name and differ by version."""
    name, _, digest = identity.partition("@sha256:")
    return name, digest[:DIGITS]


def _hash(identity: str) -> str:
    """What a tier may know an adapter by, as folders on disk are named."""
    return identity.rpartition(":")[2]


def _loads(rows: Mapping[tuple[str, str], AdapterCounts]) -> Family:
    points: Points = {
        (*label, step): seconds.read() for label, row in rows.items() for step, seconds in list(row.loads.items())
    }
    return Family("swapmeet_adapter_load_seconds", "summary", "Loading, by step.", (*LABELS, "step"), points)


def _residency(own: Mapping[str, tuple[str, str]], tiers: Mapping[str, Collection[str]]) -> Family:
    labels = {_hash(identity): label for identity, label in own.items()}
    points: Points = {}
    for tier, identities in tiers.items():
        held = {_hash(identity) for identity in identities}
        points |= {(*label, tier): float(each in held) for each, label in labels.items()}
        points[(*OTHER, tier)] = float(len(held - labels.keys()))
    text = "Whether a tier holds the adapter; under other, how many of the others."
    return Family("swapmeet_adapter_resident", "gauge", text, (*LABELS, "tier"), points)
