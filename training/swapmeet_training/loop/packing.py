"""Pack short examples into rows of one length, so that little of a batch is padding."""

from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """First-fit-decreasing: the longest first, each into the first row that has room for it.

    Never more than 11/9 of the fewest possible rows, plus one (Dósa 2007).

    Args:
        lengths: of the examples, none longer than `capacity`.
        capacity: of a row.

    Returns:
        The rows, each with the indices of its examples; every index stands in exactly one row.
    """
    rows: list[list[int]] = []
    room = _Room(len(lengths), capacity)
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        row = room.take(lengths[index])
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
    return rows


class _Room:
    """The room left in each of `count` rows; a tree of maxima finds the first with enough in log2(count) steps."""

    def __init__(self, count: int, capacity: int) -> None:
        self._leaves = 1 << max(count - 1, 0).bit_length()
        self._most = [capacity] * (2 * self._leaves)

    def take(self, length: int) -> int:
        """Take room from the first row that has it."""
        most, node = self._most, 1
        while node < self._leaves:
            node *= 2
            if most[node] < length:
                node += 1
        row = node - self._leaves
        most[node] -= length
        while node > 1:
            node //= 2
            most[node] = max(most[2 * node], most[2 * node + 1])
        return row
