"""Adapters in host memory, packed for a device that has memory of its own: bringing one there is a single copy."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class HostCopy:
    """An adapter that needs no file any more.

    Attributes:
        size: bytes it takes on the device.
        packed: what reading its file gave.
    """

    size: int
    packed: Any
    portable: bool = True

    def read(self) -> Any:
        """What reading its file gave."""
        return self.packed


class HostTier:
    """Copies within a budget of bytes; those longest unused go. For any thread.

    Identities are of contents, so a copy never grows old.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._used = 0
        self._copies: OrderedDict[str, HostCopy] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def identities(self) -> list[str]:
        """The adapters that are there."""
        with self._lock:
            return list(self._copies)

    def get(self, identity: str) -> HostCopy | None:
        """The copy of an adapter, if there is one."""
        with self._lock:
            if identity in self._copies:
                self._copies.move_to_end(identity)
            return self._copies.get(identity)

    def keep(self, identity: str, copy: HostCopy) -> None:
        """Keep a copy, if there is room for it at all."""
        if copy.size > self.budget:
            return
        with self._lock:
            before = self._copies.pop(identity, None)
            self._used += copy.size - (before.size if before else 0)
            self._copies[identity] = copy
            while self._used > self.budget:
                _, oldest = self._copies.popitem(last=False)
                self._used -= oldest.size

    def drop(self, identity: str) -> None:
        """Keep a copy no longer, if there is one."""
        with self._lock:
            if copy := self._copies.pop(identity, None):
                self._used -= copy.size
