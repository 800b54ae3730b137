"""An adapter's way into memory: absent, fetched to disk, room reserved, read, resident.

All state belongs to the engine's thread; only fetching and reading happen elsewhere. Room is reserved before
weights are read, so memory stays within the budget while adapters load, too.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Container
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from swapmeet_serving.adapter_bank import AdapterBank
from swapmeet_serving.adapter_loader import AdapterLoader
from swapmeet_serving.host_tier import HostCopy, HostTier
from swapmeet_serving.meter import Meter


class AdapterFile(Protocol):
    """An adapter on disk that was checked, or in host memory: its size on the device in bytes, and how to read it."""

    @property
    def size(self) -> int:
        """Bytes the weights take on the device."""
        ...

    @property
    def portable(self) -> bool:
        """Whether what is read is in host memory, all of it."""
        ...

    def read(self) -> Any:
        """Read the weights into host memory."""
        ...


class Readiness(Enum):
    """How far an adapter is, seen from a request that waits for it; of a mix, the farthest counts."""

    READY = 1
    LOADING = 2
    NO_ROOM = 3


MOST_FAILURES = 1024
FAILURE_SECONDS = 2.0
"""How long a failed load is not tried again: long enough for a flood of requests, short enough for a repair."""


class Adapters:
    """The adapters in memory, the loads under way, and those that failed just now.

    `fetch` gives an identity's folder, `open_file` checks it and `bring` gives the form on the device of what was read;
    all run on the loader's threads. `host` keeps what was read. `meter` is told of loads and evictions.
    """

    def __init__(
        self,
        bank: AdapterBank,
        loader: AdapterLoader,
        fetch: Callable[[str], Path],
        open_file: Callable[[Path, str], AdapterFile],
        bring: Callable[[Any], Any],
        host: HostTier,
        meter: Meter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bank = bank
        self._loader = loader
        self._fetch = fetch
        self._open = open_file
        self._bring = bring
        self._host = host
        self._meter = meter or Meter()
        self._clock = clock
        self._under_way: dict[str, float] = {}  # since when
        self._unwanted: set[str] = set()  # of these, those that nobody waits for any more
        self._withdrawn: dict[str, Exception] = {}  # of these, those that nobody may have any more
        self._at_hand: dict[str, tuple[AdapterFile, float]] = {}  # and seconds it took to get there
        self._weights: dict[str, Any] = {}
        self._failures: OrderedDict[str, tuple[Exception, TracebackType | None, float]] = OrderedDict()  # when

    @property
    def resident(self) -> list[str]:
        """Identities of the adapters in memory, those first that would be evicted first."""
        return [identity for identity in self._bank if identity in self._weights]

    def weights(self, identity: str) -> Any:
        """What reading a resident adapter gave."""
        return self._weights[identity]

    def check(self, identities: tuple[str, ...]) -> None:
        """Raise what keeps these adapters from being in memory together.

        Raises:
            AdapterTooLarge: their sizes are known, and together exceed the budget.
            Exception: whatever a load of one of them raised just now.
        """
        if self._failures:
            self._raise_failure(identities)
        if len(identities) > 1:
            sizes = [self._size(identity) for identity in identities]
            known = sum(size for size in sizes if size is not None)
            self._bank.require_possible(" + ".join(identities), known)

    def prepare(self, identity: str, keep: Container[str] = ()) -> Readiness:
        """Take the adapter's next step towards memory, evicting none of `keep`, and say how far it is."""
        if identity in self._weights:
            return Readiness.READY
        self._unwanted.discard(identity)
        if identity in self._at_hand:
            return self._begin_read(identity, keep)
        if identity not in self._under_way:
            self._under_way[identity] = self._clock()
            self._loader.start(identity, lambda: self._look_up(identity))
        return Readiness.LOADING

    def collect(self) -> dict[str, Exception]:
        """Take in what the background finished; returns the adapters that failed, and why."""
        failed = {}
        for identity, result in self._loader.finished():
            seconds = self._clock() - self._under_way.pop(identity)
            wanted = identity not in self._unwanted
            self._unwanted.discard(identity)
            if identity in self._withdrawn:
                result = self._withdrawn.pop(identity)
                self._host.drop(identity)
            try:
                self._take_in(identity, result, seconds, wanted)
            except Exception as error:
                failed[identity] = error
                self._remember(identity, error)
        return failed

    def pin(self, identity: str) -> None:
        """Keep a resident adapter in memory."""
        self._bank.pin(identity)

    def unpin(self, identity: str) -> None:
        """Take one pin back."""
        self._bank.unpin(identity)

    def forget(self, identity: str) -> None:
        """Nobody waits for this adapter any more: if it is not on the device, look it up anew next time."""
        self._at_hand.pop(identity, None)
        if identity in self._under_way:
            self._unwanted.add(identity)

    def withdraw(self, identity: str, error: Exception) -> None:
        """Drop all there is of an adapter that nobody has pinned; a load under way ends with this error."""
        self._at_hand.pop(identity, None)
        self._host.drop(identity)
        self._remember(identity, error)
        if identity in self._under_way:
            self._withdrawn[identity] = error
        elif identity in self._bank:
            self._bank.drop(identity)
            del self._weights[identity]
            self._meter.evicted([identity])

    def _begin_read(self, identity: str, keep: Container[str]) -> Readiness:
        file, seconds = self._at_hand[identity]
        evicted = self._bank.reserve(identity, file.size, keep, cost=seconds)
        if evicted is None:
            return Readiness.NO_ROOM
        for other in evicted:
            del self._weights[other]
        self._meter.evicted(evicted)
        del self._at_hand[identity]
        self._under_way[identity] = self._clock()
        self._loader.start(identity, lambda: self._read(identity, file))
        return Readiness.LOADING

    def _look_up(self, identity: str) -> AdapterFile:
        if copy := self._host.get(identity):
            return copy
        folder = self._fetch(identity)
        with self._meter.load(identity, "open"):
            try:
                return self._open(folder, identity)
            except Exception:
                if folder.exists():
                    raise
                return self._open(self._fetch(identity), identity)  # it had to make room on disk in between

    def _read(self, identity: str, file: AdapterFile) -> Any:
        with self._meter.load(identity, "read"):
            try:
                packed = file.read()
            except FileNotFoundError:  # the same, while there was no room in memory
                self._fetch(identity)
                packed = file.read()
        if file.portable:
            self._host.keep(identity, HostCopy(file.size, packed))
        return self._bring(packed)

    def _take_in(self, identity: str, result: Any, seconds: float, wanted: bool) -> None:
        reading = identity in self._bank
        if isinstance(result, Exception):
            if reading:
                self._bank.drop(identity)
            raise result
        if reading:
            self._weights[identity] = result
            self._bank.unpin(identity)
        else:
            self._bank.require_possible(identity, result.size)
            if wanted:
                self._at_hand[identity] = (result, seconds)

    def _size(self, identity: str) -> int | None:
        if identity in self._bank:
            return self._bank.size(identity)
        return self._at_hand[identity][0].size if identity in self._at_hand else None

    def _remember(self, identity: str, error: Exception) -> None:
        self._failures[identity] = (error, error.__traceback__, self._clock())
        if len(self._failures) > MOST_FAILURES:
            self._failures.popitem(last=False)

    def _raise_failure(self, identities: tuple[str, ...]) -> None:
        for identity in identities:
            error, traceback, since = self._failures.get(identity, (None, None, 0.0))
            if error is not None and self._clock() - since < FAILURE_SECONDS:
                raise error.with_traceback(traceback)  # the first one's: else it grew with each who asks
            self._failures.pop(identity, None)
