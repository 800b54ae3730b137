"""Which adapters have room in memory: bytes, pins, and whose turn it is to go. Knows no tensors.

What goes first is what would cost least to miss: Greedy-Dual-Size-Frequency (Cherkasova, 1998). An adapter's worth is
how often it was used times what loading it took, by its size, upon a level that rises to the worth of whatever had to
go, so that former popularity fades.
"""

from collections import OrderedDict
from collections.abc import Container, Iterator
from dataclasses import dataclass

from swapmeet_serving.errors import AdapterTooLarge


@dataclass(slots=True)
class _Room:
    size: int
    pins: int
    cost: float
    uses: int = 0
    worth: float = 0.0


class AdapterBank:
    """Room for adapters within `budget` bytes. What is pinned stays; of the rest, what is worth least goes first."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.used = 0
        self._rooms: OrderedDict[str, _Room] = OrderedDict()  # the last used last, which decides between equals
        self._level = 0.0

    def __contains__(self, identity: str) -> bool:
        return identity in self._rooms

    def __iter__(self) -> Iterator[str]:
        """The first to go first."""
        rooms = list(self._rooms.items())  # in one go, because other threads may ask
        return iter([identity for identity, room in sorted(rooms, key=lambda item: item[1].worth)])

    def size(self, identity: str) -> int:
        """Bytes that an adapter has room for."""
        return self._rooms[identity].size

    def require_possible(self, identity: str, size: int) -> None:
        """Check that an adapter, or a mix of them, could have room if all others left.

        Raises:
            AdapterTooLarge: it exceeds the whole budget.
        """
        if size > self.budget:
            raise AdapterTooLarge(
                f"{identity} takes {size} bytes in memory, and only {self.budget} are set aside for adapters. "
                "Serve it with a larger adapter budget."
            )

    def reserve(self, identity: str, size: int, keep: Container[str] = (), cost: float = 1.0) -> list[str] | None:
        """Make room, pinned once for the caller, by evicting what is neither pinned nor in `keep`.

        Args:
            identity: the adapter.
            size: in bytes.
            keep: adapters that stay.
            cost: what loading it takes, in seconds.

        Returns:
            The identities evicted, or None, with nothing changed, while there is no room to be had.
        """
        self.require_possible(identity, size)
        assert identity not in self._rooms, f"{identity} has room already"
        evicted, freed = [], self.budget - self.used
        for other in self:
            if freed >= size:
                break
            if not self._rooms[other].pins and other not in keep:
                evicted.append(other)
                freed += self._rooms[other].size
        if freed < size:
            return None
        for other in evicted:
            gone = self._rooms.pop(other)
            self._level = max(self._level, gone.worth)
            self.used -= gone.size
        self._rooms[identity] = _Room(size, pins=1, cost=cost, worth=self._level)
        self.used += size
        return evicted

    def pin(self, identity: str) -> None:
        """Keep an adapter in memory until it is unpinned as often as pinned; it was used once more."""
        room = self._rooms[identity]
        room.pins += 1
        room.uses += 1
        room.worth = self._level + room.uses * room.cost / max(1, room.size)
        self._rooms.move_to_end(identity)

    def unpin(self, identity: str) -> None:
        """Take one pin back."""
        room = self._rooms[identity]
        assert room.pins > 0, f"{identity} is not pinned"
        room.pins -= 1

    def drop(self, identity: str) -> None:
        """Give room back that was reserved for a load that failed, or that nobody uses any more."""
        room = self._rooms.pop(identity)
        assert room.pins <= 1, f"{identity} is in use"
        self.used -= room.size
