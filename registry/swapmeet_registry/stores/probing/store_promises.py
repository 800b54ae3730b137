"""What every store promises, tried through `Store` alone."""

import hashlib
import os
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from uuid import uuid4

from swapmeet_registry.errors import Conflict, Refused
from swapmeet_registry.stores.opening import open_store
from swapmeet_registry.stores.probing.promises import Broken, Lacking, Promises, at_once, require
from swapmeet_registry.stores.protocol import Store, Stored

READS = 30
"""Times that a write is looked for at once."""
BIG = 36 << 20
"""Bytes of a file that goes in parts, where a store has such a thing."""
SKEW = 60.0
"""Seconds by which clocks may differ before it is worth a word; collections of garbage compare them."""
WORST_SKEW = 900.0
PATIENCE = 120.0
"""Seconds until a counter must have got to its end."""
ODD = "a b/c+d%20e&f?g#h=x;y~(1)"


def store_promises(store: Store, rounds: int, threads: int) -> Promises:
    """The promises of `Store`, to be tried in an empty one."""
    tried = _StorePromises(store, rounds, threads)
    return Promises(
        alone=(
            ("create once", tried.create_once),
            ("replace only what is expected", tried.replace_expected),
            ("read after write", tried.read_after_write),
            ("list after write", tried.list_after_write),
            ("delete", tried.delete),
            ("odd keys", tried.odd_keys),
            ("ranges", tried.ranges),
            ("big object", tried.big_object),
            ("other bytes refused", tried.other_bytes),
            ("clock", tried.clock),
        ),
        races=(
            ("create race", tried.create_race),
            ("compare-and-swap race", tried.swap_race),
            ("counter", tried.counter),
        ),
    )


@dataclass(frozen=True)
class _StorePromises:
    store: Store
    rounds: int
    threads: int
    reader: Store = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reader", open_store(self.store.url))  # with connections of its own

    def create_once(self) -> None:
        self.store.swap("once", b"1", None)
        self._require_conflict("once", None, "An object was created although it existed")

    def replace_expected(self) -> None:
        self._require_conflict("absent", "0" * 32, "An object that does not exist was replaced")
        first = self.store.swap("replaced", b"1", None)
        second = self.store.swap("replaced", b"2", first)
        self._require_conflict("replaced", first, "An object was replaced although it had changed")
        require(self.store.get("replaced") == Stored(b"2", second), "A replaced object reads as another.")

    def read_after_write(self) -> None:
        etag = None
        require(self.reader.get("read") is None, "An object was read that was never written.")
        for turn in range(READS):
            data = b"%d" % turn
            etag = self.store.swap("read", data, etag)
            require(self.reader.get("read") == Stored(data, etag), f"Write {turn} was not read right after it.")
            self._put(f"read-{turn}", data)
            require(self.reader.size(f"read-{turn}") == len(data), "A new object was not there right after its write.")

    def list_after_write(self) -> None:
        for turn in range(READS):
            self._put(f"list/{turn:03}", b"")
            wanted = [f"list/{number:03}" for number in range(turn + 1)]
            require(list(self.reader.list("list/")) == wanted, "A listing lacks an object right after its write.")
        self.store.delete("list/000")
        require("list/000" not in self.reader.list("list/"), "A listing has an object right after its deletion.")

    def delete(self) -> None:
        for turn in range(3):
            self.store.swap("deleted", b"%d" % turn, None)
            self.store.delete("deleted")
            self.store.delete("deleted")
            require(self.reader.get("deleted") is None, "An object was read right after its deletion.")
            require(self.reader.size("deleted") is None, "An object was there right after its deletion.")

    def odd_keys(self) -> None:
        self._put(ODD, b"odd")
        require(list(self.reader.list("a b/")) == [ODD], f"The key {ODD!r} is listed as another.")
        stored = self.reader.get(ODD)
        require(stored is not None and stored.data == b"odd", f"What is written under {ODD!r} is not read there.")

    def ranges(self) -> None:
        data = os.urandom((1 << 20) + 4321)
        self._put("ranges", data)
        for start in (0, 1, 4321, 1 << 19, len(data) - 1, len(data)):
            found = b"".join(self.reader.stream("ranges", start) or ())
            require(found == data[start:], f"A read from byte {start} on gave other bytes.")
        self._put("empty", b"")
        require(b"".join(self.reader.stream("empty") or (b"none",)) == b"", "An empty object is not empty.")

    def big_object(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            source, written = Path(folder) / "big", hashlib.sha256()
            with source.open("wb") as stream:
                for _ in range(BIG >> 20):
                    block = os.urandom(1 << 20)
                    stream.write(block)
                    written.update(block)
            self.store.put("big", source, written.hexdigest())
        read = hashlib.sha256()
        for piece in self.reader.stream("big") or ():
            read.update(piece)
        require(read.digest() == written.digest(), f"A file of {BIG >> 20} MiB came back as other bytes.")

    def other_bytes(self) -> None:
        try:
            self.store.put("other", b"other", hashlib.sha256(b"announced").hexdigest())
        except Refused:
            require(self.reader.get("other") is None, "Bytes were refused, and are there.")
            return
        raise Broken("Bytes were taken that have another SHA-256.")

    def clock(self) -> None:
        self._put("clock", b"")
        (entry,) = self.reader.scan("clock")
        skew = abs(time.time() - entry.written_at)
        seen = f"The store's clock differs from this machine's by {skew:.0f} seconds. Set them right."
        require(skew < WORST_SKEW, seen)
        if skew > SKEW:
            raise Lacking(seen)

    def create_race(self) -> None:
        for turn in range(self.rounds):
            self._race(f"create-{turn}", None)

    def swap_race(self) -> None:
        etag = self._race("raced", None)
        for _ in range(self.rounds):
            etag = self._race("raced", etag)

    def counter(self) -> None:
        each, deadline = max(1, self.rounds // 2), time.monotonic() + PATIENCE + self.rounds

        def count() -> None:
            for _ in range(each):
                while not self._counted():
                    require(time.monotonic() < deadline, "Writers that take turns do not get on.")

        at_once([count] * self.threads)
        stored = self.store.get("counter")
        counted, wanted = int(stored.data.split()[0]) if stored else 0, each * self.threads
        require(counted == wanted, f"Of {wanted} updates, {wanted - counted} were lost.")

    def _counted(self) -> bool:
        stored = self.store.get("counter")
        value = int(stored.data.split()[0]) if stored else 0
        try:
            data = f"{value + 1} {uuid4().hex}".encode()
            self.store.swap("counter", data, stored.etag if stored else None)
        except Conflict:
            return False
        return True

    def _race(self, key: str, expected: str | None) -> str:
        def attempt(data: bytes) -> tuple[bytes, str] | None:
            try:
                return data, self.store.swap(key, data, expected)
            except Conflict:
                return None

        calls = [partial(attempt, uuid4().bytes) for _ in range(self.threads)]
        winners = [won for won in at_once(calls) if won is not None]
        require(len(winners) == 1, f"Of {self.threads} writers of one object {len(winners)} were told that they won.")
        require(self.reader.get(key) == Stored(*winners[0]), "What is read is not what the winner wrote.")
        return winners[0][1]

    def _put(self, key: str, data: bytes) -> None:
        self.store.put(key, data, hashlib.sha256(data).hexdigest())

    def _require_conflict(self, key: str, expected: str | None, seen: str) -> None:
        try:
            self.store.swap(key, b"other", expected)
        except Conflict:
            return
        raise Broken(f"{seen}: conditions on writes are accepted, and not honoured.")
