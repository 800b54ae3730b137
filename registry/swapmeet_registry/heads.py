"""The heads in a store: the only objects ever written twice, each by compare-and-swap."""

from collections.abc import Callable
from typing import ClassVar

from swapmeet_registry.errors import Conflict, Corrupt, InvalidName, NotFound, Refused
from swapmeet_registry.head import Head
from swapmeet_registry.names import AdapterName
from swapmeet_registry.stores import Store

ATTEMPTS = 100
"""How often a change is tried while others change the same head."""

_SUFFIX = ".json"


class Heads:
    """One small document per adapter name, `heads/TENANT/NAME.json`, so that names do not wait for each other."""

    FOLDER: ClassVar[str] = "heads/"

    def __init__(self, store: Store) -> None:
        self._store = store

    def names(self) -> list[str]:
        """The names that have a head, sorted."""
        keys = self._store.list(self.FOLDER)
        return sorted(_name(key) for key in keys)

    def get(self, name: AdapterName) -> Head:
        """A name's head.

        Raises:
            Corrupt: what is stored is not a head of this name.
            NotFound: there is none.
        """
        return self._read(name, None)[0]

    def at(self, key: str) -> Head:
        """The head under a key of a listing.

        Raises:
            Corrupt: what is stored is not a head of the name in the key.
            NotFound: there is none any more.
        """
        try:
            name = AdapterName.parse(_name(key))
        except InvalidName as error:
            raise Corrupt(f"{key} in {self._store.url} is no head. Move it away.") from error
        return self.get(name)

    def change(self, name: AdapterName, change: Callable[[Head], Head], start: Head | None = None) -> Head:
        """Apply a pure change, again and again until nobody else's write comes in between.

        Args:
            name: whose head.
            change: gives the next head; one that is equal is not written.
            start: what to change where there is no head yet.

        Raises:
            Conflict: others kept writing.
            NotFound: there is no head, and no `start`.
        """
        for _ in range(ATTEMPTS):
            head, etag = self._read(name, start)
            changed = change(head)
            if changed == head:
                return head
            try:
                self._store.swap(_key(name), changed.encode(), etag)
            except Conflict:
                continue
            return changed
        raise Conflict(f"{name} is being changed by many others at once. Try again later.")

    def _read(self, name: AdapterName, start: Head | None) -> tuple[Head, str | None]:
        stored = self._store.get(_key(name))
        if stored is None:
            if start is None:
                raise absent(name)
            return start, None
        try:
            head = Head.decode(stored.data, f"{_key(name)} in {self._store.url}")
        except Refused as error:
            raise Corrupt(str(error)) from error
        if head.adapter != str(name):
            raise Corrupt(f"{_key(name)} in {self._store.url} is the head of {head.adapter}. Restore it from a copy.")
        return head, stored.etag


def absent(name: AdapterName) -> NotFound:
    """What is said of a name without a head, and of one that must seem to have none."""
    return NotFound(f"There is no adapter {name} in this registry. Check its name.")


def _key(name: AdapterName) -> str:
    return f"{Heads.FOLDER}{name}{_SUFFIX}"


def _name(key: str) -> str:
    return key.removeprefix(Heads.FOLDER).removesuffix(_SUFFIX)
