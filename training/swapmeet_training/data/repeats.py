"""Examples that stand twice, in one file or in two, found in twelve bytes for each."""

import hashlib
from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from swapmeet_training.data.examples import Example, content_of

Lines = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Lines, in order, and for each the line where the same example stands first."""

    lines: Lines
    first: Lines

    def __len__(self) -> int:
        return len(self.lines)


class Contents:
    """What a file's examples teach, as eight bytes of a hash each, with their lines.

    Of a million different examples, two look alike with a probability of one in thirty million.
    """

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._lines = array("I")

    def add(self, example: Example) -> None:
        """Note an example."""
        digest = hashlib.blake2b(content_of(example), digest_size=8).digest()
        self._hashes.append(int.from_bytes(digest, "little"))
        self._lines.append(example.line)

    def repeated(self) -> Pairs:
        """The examples that stood on an earlier line already."""
        hashes, lines, order = self._sorted()
        if not len(hashes):
            return Pairs(lines, lines)
        again = np.concatenate([[False], hashes[1:] == hashes[:-1]])
        starts = np.maximum.accumulate(np.where(again, 0, np.arange(len(hashes))))
        return _in_order(lines[order[again]], lines[order[starts[again]]])

    def shared(self, other: "Contents") -> Pairs:
        """The examples that stand in another file, too; `first` are the lines there."""
        hashes, lines, order = other._sorted()
        own, own_lines = np.frombuffer(self._hashes, np.uint64), np.frombuffer(self._lines, np.uint32)
        if not len(hashes):
            return Pairs(own_lines[:0], lines)
        places = np.minimum(np.searchsorted(hashes, own), len(hashes) - 1)
        found = hashes[places] == own
        return Pairs(own_lines[found], lines[order[places[found]]])

    def _sorted(self) -> tuple[NDArray[np.uint64], Lines, NDArray[np.int64]]:
        """The hashes in order, the lines as they came, and which of these each hash has."""
        hashes = np.frombuffer(self._hashes, np.uint64)
        order = np.argsort(hashes, kind="stable")
        return hashes[order], np.frombuffer(self._lines, np.uint32), order


def _in_order(lines: Lines, first: Lines) -> Pairs:
    order = np.argsort(lines, kind="stable")
    return Pairs(lines[order], first[order])
