"""Which adapters have room in memory: bytes, pins, and the order of last use. Knows no tensors."""

from collections import OrderedDict
from collections.abc import Container, Iterator
from dataclasses import dataclass

from swapmeet_serving.errors import AdapterTooLarge


@dataclass(slots=True)
class _Room:
    size: int
    pins: int


class AdapterBank:
    """Room for adapters within `budget` bytes. What is pinned stays; the rest goes least recently used first."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.used = 0
        self._rooms: OrderedDict[str, _Room] = OrderedDict()

    def __contains__(self, identity: str) -> bool:
        return identity in self._rooms

    def __iter__(self) -> Iterator[str]:
        return iter(self._rooms)

    def require_possible(self, identity: str, size: int) -> None:
        """Check that an adapter could have room if all others left.

        Raises:
            AdapterTooLarge: it exceeds the whole budget.
        """
        if size > self.budget:
            raise AdapterTooLarge(
                f"{identity} takes {size} bytes in memory, and only {self.budget} are set aside for adapters. "
                "Serve it with a larger adapter budget."
            )

    def reserve(self, identity: str, size: int, keep: Container[str] = ()) -> list[str] | None:
        """Make room, pinned once for the caller, by evicting what is neither pinned nor in `keep`.

        Returns:
            The identities evicted, or None, with nothing changed, while there is no room to be had.
        """
        self.require_possible(identity, size)
        assert identity not in self._rooms, f"{identity} has room already"
        evicted, freed = [], self.budget - self.used
        for other, room in self._rooms.items():
            if freed >= size:
                break
            if not room.pins and other not in keep:
                evicted.append(other)
                freed += room.size
        if freed < size:
            return None
        for other in evicted:
            self.used -= self._rooms.pop(other).size
        self._rooms[identity] = _Room(size, pins=1)
        self.used += size
        return evicted

    def pin(self, identity: str) -> None:
        """Keep an adapter in memory until it is unpinned as often as pinned; it now is the last used."""
        self._rooms[identity].pins += 1
        self._rooms.move_to_end(identity)

    def unpin(self, identity: str) -> None:
        """Take one pin back."""
        room = self._rooms[identity]
        assert room.pins > 0, f"{identity} is not pinned"
        room.pins -= 1

    def drop(self, identity: str) -> None:
        """Give room back that was reserved for a load that failed."""
        room = self._rooms.pop(identity)
        assert room.pins == 1, f"{identity} is in use"
        self.used -= room.size
