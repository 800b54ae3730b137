"""The heads of all names: what is written more than once, always by compare-and-swap."""

from collections.abc import Callable

from swapmeet_registry.backend import Backend, Source, Staged
from swapmeet_registry.errors import Conflict, Corrupt, NotFound, Refused
from swapmeet_registry.head import Head
from swapmeet_registry.names import AdapterName
from swapmeet_registry.stores import Stored

ATTEMPTS = 100
"""How often a change is tried while others change the same head."""


class Heads:
    """One small document per adapter name, so that names do not wait for each other."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def get(self, name: AdapterName) -> Head:
        """A name's head.

        Raises:
            Corrupt: what is stored is not a head of this name.
            NotFound: there is none.
        """
        return read_head(self._backend, name)

    def change(
        self,
        name: AdapterName,
        change: Callable[[Head], Head],
        start: Head | None = None,
        staged: Staged | None = None,
    ) -> Head:
        """Apply a pure change, again and again until nobody else's write comes in between.

        Args:
            name: whose head.
            change: gives the next head; one that is equal is not written.
            start: what to change where there is no head yet.
            staged: the version that the change adds.

        Raises:
            Conflict: others kept writing.
            NotFound: there is no head, and no `start`.
        """
        known = list(staged.heads) if staged else []
        for _ in range(ATTEMPTS):
            head, etag = _parsed(self._backend, name, known.pop() if known else self._backend.head(name), start)
            changed = change(head)
            if changed == head:
                return head
            try:
                self._backend.swap(name, changed, etag, staged)
            except Conflict:
                continue
            return changed
        raise Conflict(f"{name} is being changed by many others at once. Try again later.")


def read_head(source: Source, name: AdapterName) -> Head:
    """A name's head, from what can only be read; see `Heads.get`."""
    return _parsed(source, name, source.head(name), None)[0]


def absent(name: AdapterName, advice: str = "Check its name.") -> NotFound:
    """What is said of a name without a head, and of one that must seem to have none."""
    return NotFound(f"There is no adapter {name} in this registry. {advice}")


def _parsed(source: Source, name: AdapterName, stored: Stored | None, start: Head | None) -> tuple[Head, str | None]:
    if stored is None:
        if start is None:
            raise absent(name, source.absence(name))
        return start, None
    what = f"heads/{name}.json in {source.url}"
    try:
        head = Head.decode(stored.data, what)
    except Refused as error:
        raise Corrupt(f"{error} Restore it from a copy, unless a newer Swapmeet wrote it.") from error
    if head.adapter != str(name):
        raise Corrupt(f"{what} is the head of {head.adapter}. Restore it from a copy.")
    return head, stored.etag
