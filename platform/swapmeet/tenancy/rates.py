"""Requests and tokens a minute, by tenant: buckets that fill evenly, in the memory of one gateway.

A full bucket holds a minute's worth, so a tenant that was quiet may use that at once, and then as it refills. Tokens
are taken once an answer has ended, when their number is known: requests pass while there is any left, and a long
answer may leave a debt that time pays. Several gateways count each for itself.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from swapmeet.errors import RateLimited
from swapmeet.tenancy.caller import Limits

SECONDS = 60.0
KINDS = ("requests", "tokens")
ONE = 1 - 1e-6
"""What is taken for one: sums of small parts end a little below."""
MOST = 10_000
"""Buckets kept before those that are full again are forgotten."""


@dataclass(slots=True)
class _Bucket:
    """What was left at a moment, in units; what is left now follows from the limit."""

    left: float
    at: float

    def fill(self, limit: int, now: float) -> float:
        """What is left by now."""
        self.left = min(float(limit), self.left + (now - self.at) * limit / SECONDS)
        self.at = now
        return self.left


class Rates:
    """How much of its minute each tenant has left; for one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], _Bucket] = {}

    def take(self, tenant: str, limits: Limits) -> dict[str, str]:
        """Let a request of a tenant's begin; gives the headers that say what is left, none where nothing is limited.

        Raises:
            RateLimited: not now; its headers say when.
        """
        limited = _limited(limits)
        if not limited:
            return {}
        left = {kind: self._left(tenant, kind, limit) for kind, limit in limited.items()}
        waits = {kind: _seconds(1 - left[kind], limit) for kind, limit in limited.items() if left[kind] < ONE}
        if waits:
            kind = max(waits, key=lambda each: waits[each])
            wait = {"retry-after": str(math.ceil(waits[kind]))}
            raise RateLimited(
                f"You may use {limited[kind]} {kind} a minute, and have. Try again in {wait['retry-after']} s.",
                _headers(limited, left) | wait,
            )
        if "requests" in limited:
            self._buckets[tenant, "requests"].left -= 1
            left["requests"] -= 1
        return _headers(limited, left)

    def spend(self, tenant: str, limits: Limits, tokens: int) -> None:
        """Count the tokens of an answer that has ended."""
        if limits.tokens_a_minute is not None:
            self._left(tenant, "tokens", limits.tokens_a_minute)
            self._buckets[tenant, "tokens"].left -= tokens

    def _left(self, tenant: str, kind: str, limit: int) -> float:
        now = self._clock()
        bucket = self._buckets.get((tenant, kind))
        if bucket is None:
            if len(self._buckets) >= MOST:
                self._forget(now)
            bucket = self._buckets[tenant, kind] = _Bucket(float(limit), now)
        return bucket.fill(limit, now)

    def _forget(self, now: float) -> None:
        """Forget who was quiet for so long that its bucket would be full, unless it is in debt by many minutes."""
        quiet = [key for key, each in self._buckets.items() if now - each.at > SECONDS and each.left >= 0]
        for key in quiet:
            del self._buckets[key]


def _limited(limits: Limits) -> dict[str, int]:
    each = {"requests": limits.requests_a_minute, "tokens": limits.tokens_a_minute}
    return {kind: limit for kind, limit in each.items() if limit is not None}


def _seconds(missing: float, limit: int) -> float:
    """Until so much has come; a minute where nothing ever comes."""
    return missing * SECONDS / limit if limit else SECONDS


def _headers(limited: dict[str, int], left: dict[str, float]) -> dict[str, str]:
    """OpenAI's headers: the limit, what is left of it, and when it is whole again."""
    found = {}
    for kind, limit in limited.items():
        found[f"x-ratelimit-limit-{kind}"] = str(limit)
        found[f"x-ratelimit-remaining-{kind}"] = str(max(0, math.floor(left[kind])))
        found[f"x-ratelimit-reset-{kind}"] = _duration(_seconds(limit - left[kind], limit) if limit else 0.0)
    return found


def _duration(seconds: float) -> str:
    """As OpenAI writes it: `6m0s`, `1.5s`, `20ms`."""
    if seconds < 1:
        return f"{math.ceil(1000 * seconds)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{math.ceil(rest)}s" if minutes else f"{round(rest, 2):g}s"
