"""Collecting garbage beside publishers: this very code in thousands of orders of steps, and live."""

import hashlib
import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import (
    AdapterName,
    Conflict,
    Corrupt,
    Fingerprint,
    Manifest,
    Refused,
    Registry,
    StoreError,
    open_store,
)
from swapmeet_registry.admission.admit import admit
from swapmeet_registry.backend import Staged
from swapmeet_registry.store_backend import StoreBackend
from swapmeet_registry.stores import Entry, Stored
from swapmeet_registry.stores.local import LocalStore
from swapmeet_registry.stores.protocol import verified
from swapmeet_registry.stores.s3 import S3Store
from swapmeet_registry.stores.s3_bucket import ATTEMPTS
from swapmeet_registry.upkeep.collection import BATCH, Collected, collect
from swapmeet_registry.upkeep.condemned import LEASE, MARGIN, Condemned
from swapmeet_registry.upkeep.intents import LIFETIME, Intents
from swapmeet_registry.upkeep.live import Live

NAME = "acme/legal"
OTHERS = "blobs/sha256/" + "0" * 64


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Killed(BaseException):
    """The party was killed before its next step."""


@dataclass
class Clock:
    """Stands for the module `time`: time passes only when all that is left to do is sleep."""

    now: float = field(default_factory=time.time)
    sleep: Callable[[float], None] = lambda seconds: None

    def time(self) -> float:
        return self.now

    monotonic = time


@dataclass
class MemoryStore:
    """Objects in memory; before each operation the party that asks for it waits for its turn."""

    clock: Clock
    gate: Callable[[], None] = lambda: None
    objects: dict[str, bytes] = field(default_factory=dict)
    written: dict[str, float] = field(default_factory=dict)
    url: str = "memory:"

    def get(self, key: str) -> Stored | None:
        self.gate()
        data = self.objects.get(key)
        return None if data is None else Stored(data, str(hash(data)))

    def stream(self, key: str, start: int = 0) -> Iterator[bytes] | None:
        stored = self.get(key)
        return iter([stored.data[start:]]) if stored else None

    def put(self, key: str, source: bytes | Path, sha256: str) -> None:
        data = b"".join(verified(source, sha256))
        self.gate()
        self._write(key, data)

    def swap(self, key: str, data: bytes, expected: str | None) -> str:
        self.gate()
        held = self.objects.get(key)
        if (None if held is None else str(hash(held))) != expected:
            raise Conflict(key)
        self._write(key, data)
        return str(hash(data))

    def size(self, key: str) -> int | None:
        self.gate()
        return len(self.objects[key]) if key in self.objects else None

    def list(self, prefix: str) -> Iterator[str]:
        return (entry.key for entry in self.scan(prefix))

    def scan(self, prefix: str) -> Iterator[Entry]:
        self.gate()
        held = sorted(item for item in self.objects.items() if item[0].startswith(prefix))
        yield from [Entry(key, len(data), self.written[key], str(hash(data))) for key, data in held]

    def delete(self, key: str) -> None:
        self.gate()
        self.objects.pop(key, None)

    def presigned(self, key: str, seconds: int) -> str | None:
        return None

    def sweep(self, age: float) -> int:
        return 0

    def _write(self, key: str, data: bytes) -> None:
        self.objects[key] = data
        self.written[key] = self.clock.now


class Party:
    """A thread that does one step whenever it is told to."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work, self._go, self._stopped = work, threading.Semaphore(0), threading.Semaphore(0)
        self.done = self.asleep = self._kill = False
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def step(self) -> None:
        """Let it do what it waits to do, up to its next operation or its end."""
        self.asleep = False
        self._go.release()
        self._stopped.acquire()

    def kill(self) -> None:
        if not self.done:
            self._kill = True
            self.step()

    def pause(self, asleep: bool = False) -> None:
        """Called by the party: the point between two steps."""
        if self._kill:
            raise Killed  # nothing is written while it goes down
        self.asleep = asleep
        self._stopped.release()
        self._go.acquire()
        if self._kill:
            raise Killed

    def _run(self) -> None:
        self._go.acquire()
        try:
            self._work()
        except BaseException as error:  # the test looks at it
            self.error = error
        self.done = True
        self._stopped.release()


def play(store: MemoryStore, work: list[Callable[[], Any]], switches: tuple[int, ...], kill: bool) -> list[Party]:
    """Run parties in turns: the next one takes over after so many steps of each; at the end all run to their end.

    Args:
        store: whose operations are the steps; its clock passes when all that is left to do is sleep.
        work: what each party does.
        switches: after so many steps each it is the next party's turn.
        kill: kill the party whose turn ends with the last switch, instead of letting it go on later.
    """
    parties = [Party(each) for each in work]
    by_thread = {party.thread: party for party in parties}
    store.gate = lambda: by_thread[threading.current_thread()].pause()
    store.clock.sleep = lambda seconds: by_thread[threading.current_thread()].pause(asleep=True)
    current = 0
    for steps in switches:
        for _ in range(steps):
            if not parties[current].done and not parties[current].asleep:
                parties[current].step()
        current = (current + 1) % len(parties)
    if kill:
        parties[(current - 1) % len(parties)].kill()
    while any(not party.done for party in parties):
        awake = [party for party in parties if not party.done and not party.asleep]
        if not awake:
            store.clock.now += 100
            awake = [party for party in parties if not party.done]
        party = parties[current] if parties[current] in awake else awake[0]
        party.step()
    for party in parties:
        party.thread.join()
    store.gate = lambda: None
    return parties


class World:
    """A store in which the files of the adapter that will be published are garbage, as those of somebody else."""

    def __init__(self, folder: Path, base: Fingerprint, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        with admit(folder, base) as found:
            admitted = replace(found, folder=Path(shutil.copytree(found.folder, folder.with_name("canonical"))))
        monkeypatch.setattr("swapmeet_registry.registry.admit", lambda *_: nullcontext(admitted))
        for module in ("condemned", "intents", "collection"):
            monkeypatch.setattr(f"swapmeet_registry.upkeep.{module}.time", clock)
        self.folder, self.base, self.clock = folder, base, clock
        first = self.store({})
        self.publish(first)
        self.blobs = {key: data for key, data in first.objects.items() if key.startswith("blobs/")}

    def store(self, objects: dict[str, bytes] | None = None) -> MemoryStore:
        start = {**self.blobs, OTHERS: b"garbage of another"} if objects is None else objects
        return MemoryStore(self.clock, objects=start, written=dict.fromkeys(start, 0.0))

    def publish(self, store: MemoryStore) -> None:
        Registry(store).push(self.folder, NAME, base=self.base)


@pytest.fixture
def world(make_adapter: Any, tmp_path: Path, base: Fingerprint, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(make_adapter(tmp_path / "adapter"), base, Clock(), monkeypatch)


def played(world: World, turns: tuple[int, ...], publisher_first: bool, kill: bool) -> tuple[MemoryStore, Party, Party]:
    """A collection and a publish of what it finds as garbage, in turns."""
    store = world.store()
    work: list[Callable[[], Any]] = [lambda: collect(store, age=0, grace=0), lambda: world.publish(store)]
    if publisher_first:
        work.reverse()
    parties = play(store, work, turns, kill)
    publisher, collector = parties if publisher_first else reversed(parties)
    return store, publisher, collector


MOST = 30
"""More than the steps of either."""


def lost(world: World, turns: tuple[int, ...], publisher_first: bool = False, kill: bool = False) -> bool:
    """Whether a publish that was acknowledged, or can be seen, is not whole after it, and after one more collection."""
    store, publisher, collector = played(world, turns, publisher_first, kill)
    for party in (publisher, collector):
        assert party.error is None or isinstance(party.error, Killed | Corrupt), (turns, party.error)
    assert publisher.error is not None or Registry(store).names() == [NAME]
    world.clock.now += LEASE + 3 * LIFETIME
    try:
        for name in Registry(store).names():
            Registry(store).verify(name)
            collect(store, age=0, grace=0)
            Registry(store).verify(name)
    except Corrupt:
        return True
    collect(store, age=0, grace=0)
    assert OTHERS not in store.objects
    known = {*world.blobs, *store.list("manifests/"), *store.list("reports/"), f"heads/{NAME}.json", "gc/state.json"}
    assert store.objects.keys() <= known
    return False


@pytest.mark.parametrize("kill", [False, True])
@pytest.mark.parametrize("publisher_first", [False, True])
def test_every_order_of_a_publish_and_a_collection(world: World, kill: bool, publisher_first: bool) -> None:
    """With up to three changes of turn, and the death of the one who began at any step."""
    for turns in itertools.product(range(MOST), range(1, MOST), (0, 1, 3, 9)):
        assert not lost(world, turns, publisher_first, kill), turns


@pytest.mark.parametrize("missing", ["spare", "second look", "intent"])
def test_each_part_of_the_agreement_is_needed(world: World, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing == "spare":
        monkeypatch.setattr(Condemned, "spare", lambda self, needed: None)
    elif missing == "second look":
        monkeypatch.setattr(
            "swapmeet_registry.upkeep.collection._Collection._sentence",
            lambda self, seen: self._condemned.write(seen, self._owner, deleting=True, keys=seen.state.keys),
        )
    else:
        monkeypatch.setattr(Intents, "protected", lambda self, lifetime: set())
    assert any(lost(world, turns) for turns in itertools.product(range(MOST), range(1, MOST), (0, 1, 3, 9)))


def test_what_a_collection_takes_and_leaves(world: World) -> None:
    store = world.store()
    registry = Registry(store)
    world.publish(store)
    world.publish(store)
    assert registry.delete(f"{NAME}:1", "a mistake").deleted == "a mistake"
    store.put("reports/" + registry.resolve(NAME).digest.replace(":", "/") + ".json", b"{}", digest_of(b"{}"))
    store.put("reports/sha256/" + "1" * 64 + ".json", b"{}", digest_of(b"{}"))
    store.put("blobs/odd name", b"who knows", digest_of(b"who knows"))
    before = dict(store.objects)
    assert collect(store, dry_run=True) == Collected(1, len(store.objects[OTHERS]), len(world.blobs) + 7)
    world.clock.now += 100
    counted = collect(store, age=50, grace=50, dry_run=True)
    assert store.objects == before
    assert collect(store, age=50, grace=50) == counted
    gone = before.keys() - store.objects.keys()
    assert gone == {
        OTHERS, "blobs/odd name", "reports/sha256/" + "1" * 64 + ".json",
        "manifests/" + registry.show(NAME).versions[0].digest.replace(":", "/"),
        "reports/" + registry.show(NAME).versions[0].digest.replace(":", "/") + ".json",
    }  # fmt: skip
    assert registry.verify(NAME).version == 2
    assert collect(store, age=50, grace=50).objects == 0


def test_many_batches(world: World) -> None:
    keys = [f"blobs/sha256/{number:064x}" for number in range(2 * BATCH + 1)]
    store = world.store(dict.fromkeys(keys, b"x"))
    assert collect(store, age=0) == Collected(len(keys), len(keys), len(keys))
    assert list(store.list("blobs/")) == []


def test_one_collection_at_a_time_and_the_next_after_a_dead_one(world: World) -> None:
    store = world.store()
    Condemned(store).write(Condemned(store).read(), "another")
    with pytest.raises(Refused, match=r"is under way"):
        collect(store)
    world.clock.now += LEASE + 1
    assert collect(store, age=0).objects == len(world.blobs) + 1


@pytest.mark.parametrize("step", ["condemned", "deleting", "answer"])
def test_a_collection_that_fails_is_in_nobodys_way(world: World, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = world.store()
    delete, swap, swaps = store.delete, store.swap, 0

    def failing(key: str) -> None:
        if not key.startswith("intents/"):
            raise StoreError("The disk is away.")
        delete(key)

    def swap_and_fail(key: str, data: bytes, expected: str | None) -> str:
        nonlocal swaps
        swaps += 1
        etag = swap(key, data, expected)
        if swaps == (1 if step == "answer" else 2):
            raise StoreError("The answer was lost.")
        return etag

    with monkeypatch.context() as patched:
        patched.setattr(store, *(("delete", failing) if step == "deleting" else ("swap", swap_and_fail)))
        with pytest.raises(StoreError, match=r"is away|was lost"):
            collect(store, age=0)
    state = Condemned(store).read().state
    if step == "deleting":  # that one deletion may still be under way: a publisher who needs the key waits
        assert (state.active, state.deleting, len(state.keys)) == (True, True, 1)
        with pytest.raises(StoreError, match=r"is deleting these very objects"):
            Condemned(store).spare(state.keys, patience=-1)
        world.clock.now += MARGIN + 1
    assert collect(store, age=0).objects == len(world.blobs) + 1


def test_a_folders_deletions_are_over_when_they_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, data = open_store((tmp_path / "store").as_uri()), b"x"
    store.put(f"blobs/sha256/{digest_of(data)}", data, digest_of(data))
    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "delete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            collect(store, age=0)
    assert collect(store, age=0).objects == 1


def test_a_failed_collection_leaves_its_successors_alone(world: World) -> None:
    store = world.store()
    document = Condemned(store)
    document.write(document.read(), "another", keys=["blobs/x"])
    before = document.read()
    document.release("the first")
    assert document.read() == before


@pytest.mark.parametrize("damage", ["head", "manifest", "no manifest", "odd head"])
def test_nothing_is_deleted_where_it_is_unknown_what_is_needed(world: World, damage: str) -> None:
    store = world.store()
    world.publish(store)
    manifest = next(iter(store.list("manifests/")))
    if damage == "head":
        store.objects[f"heads/{NAME}.json"] = b"{"
    elif damage == "odd head":
        store.objects["heads/Odd.json"], store.written["heads/Odd.json"] = b"{}", 0
    elif damage == "manifest":
        store.objects[manifest] += b" "
    else:
        del store.objects[manifest]
    before = dict(store.objects)
    with pytest.raises(Corrupt):
        collect(store, age=0)
    assert store.objects == before


def test_a_file_that_is_another_versions_manifest_costs_that_one_nothing(
    make_adapter: Any, tmp_path: Path, base: Fingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Manifests can be read, so whoever names his adapter well is looked at first with another's manifest in it."""
    monkeypatch.setattr("swapmeet_registry.upkeep.live.HEADS_AT_ONCE", 1)
    store = open_store((tmp_path / "store").as_uri())
    registry = Registry(store)
    victim = registry.push(make_adapter(tmp_path / "adapter-0", 0), "zeta/legal", base=base)
    hostile = make_adapter(tmp_path / "adapter-1", 1)
    (hostile / "copy.json").write_bytes(registry.manifest(victim).encode())
    registry.push(hostile, "acme/first", base=base)
    assert collect(store, age=0, grace=0).objects == 0
    registry.verify("zeta/legal")


def test_no_deletion_outlives_its_collection(bucket: str) -> None:
    """A publisher writes anew what was being deleted, once the collection counts as dead."""
    settings = S3Store(bucket).bucket.client.meta.config
    pauses = sum(2**attempt for attempt in range(ATTEMPTS))
    assert ATTEMPTS * (settings.connect_timeout + settings.read_timeout) + pauses < MARGIN < LEASE


def test_a_head_of_the_same_size_and_time_is_noticed(make_adapter: Any, tmp_path: Path, base: Fingerprint) -> None:
    """A folder's listing has no etags, and two heads may be written within one tick of its clock."""
    store = open_store((tmp_path / "store").as_uri())
    registry = Registry(store)
    old, new = (registry.push(make_adapter(tmp_path / str(seed), seed), NAME, base=base) for seed in range(2))
    path, head = tmp_path / "store" / "heads" / f"{NAME}.json", registry.head(NAME)
    first, second = (record.model_copy(update={"version": 1}) for record in head.versions)
    moment, live = time.time(), Live(store, 0)
    for record in (first, second):
        path.write_bytes(head.model_copy(update={"versions": (record,)}).encode())
        os.utime(path, (moment, moment))
        live.look(moment)
    assert all(live.needs(f"manifests/{each.digest.replace(':', '/')}") for each in (old, new))
    live.close()


@pytest.mark.parametrize("asleep", [False, True])
def test_a_publish_that_takes_longer_than_its_intent_counts_is_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch, asleep: bool
) -> None:
    """Also by the calendar only: a machine's other clock stands still while it sleeps."""
    store = world.store()
    if asleep:
        monkeypatch.setattr(world.clock, "monotonic", lambda: 0.0)
    stage = StoreBackend.stage

    def slow(self: StoreBackend, name: AdapterName, manifest: Manifest, folder: Path) -> Staged:
        staged = stage(self, name, manifest, folder)
        world.clock.now += LIFETIME
        return staged

    monkeypatch.setattr(StoreBackend, "stage", slow)
    with pytest.raises(StoreError, match=r"took so long"):
        world.publish(store)
    assert Registry(store).names() == []
    assert list(store.list("intents/")) == []


@pytest.mark.slow
def test_live_publishers_beside_collections(
    make_adapter: Any, tmp_path: Path, base: Fingerprint, store_url: str
) -> None:
    """The same adapters are published, deleted and collected again and again: none is ever damaged."""
    store = open_store(store_url)
    registry = Registry(store)
    folders = [make_adapter(tmp_path / f"adapter-{seed}", seed) for seed in range(3)]
    stop = threading.Event()

    def gather() -> int:
        total = 0
        while not stop.is_set():
            total += collect(store, age=0, grace=0).objects
        return total

    def publish(number: int) -> None:
        for round_ in range(8):
            version = registry.push(folders[(number + round_) % 3], f"acme/adapter-{number}", base=base)
            registry.verify(str(version))
            registry.delete(str(version), "made room")

    with ThreadPoolExecutor(4) as pool:
        collector = pool.submit(gather)
        for done in [pool.submit(publish, number) for number in range(3)]:
            done.result()
        stop.set()
        assert collector.result() > 0
    collect(store, age=0, grace=0)
    assert [*store.list("blobs/"), *store.list("manifests/"), *store.list("reports/")] == []
