"""Adapters that an engine must not serve any more, from whoever learns of it to the thread that steps."""

import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass, field

MOST = 10_000
"""Withdrawn adapters that are remembered. Of an older one a load is refused by the registry, as of any."""


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """An adapter to be dropped, why, and, once that is done, how many requests it ended."""

    identity: str
    error: Exception
    ended: "Future[int]" = field(default_factory=Future)


class Withdrawals:
    """Which adapters were withdrawn, and the error that says why; for any thread.

    Args:
        wake: called when the engine has something to do.
    """

    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake
        self._errors: OrderedDict[str, Exception] = OrderedDict()
        self._new: list[Withdrawal] = []
        self._lock = threading.Lock()

    def add(self, identity: str, error: Exception) -> "Future[int]":
        """Have the next step drop an adapter, and `require_none` refuse it from now on."""
        withdrawal = Withdrawal(identity, error)
        with self._lock:
            self._errors[identity] = error
            self._errors.move_to_end(identity)
            if len(self._errors) > MOST:
                self._errors.popitem(last=False)
            self._new.append(withdrawal)
        self._wake.set()
        return withdrawal.ended

    def take(self) -> list[Withdrawal]:
        """What was added since the last call."""
        if not self._new:
            return []
        with self._lock:
            new, self._new = self._new, []
        return new

    def require_none(self, identities: tuple[str, ...]) -> None:
        """Refuse what needs a withdrawn adapter.

        Raises:
            Exception: the error that it was withdrawn with.
        """
        for identity in identities:
            if (error := self._errors.get(identity)) is not None:
                raise error.with_traceback(None)  # it would grow with each who asks
