"""Recalls reach a running replica: what it had is gone, requests under way end with the reason, and it says so."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import Corrupt, NotFound, Recalled, Registry, StoreError, Version, fault
from swapmeet_registry.head import Head
from swapmeet_registry.recalls import FEED, Reached
from swapmeet_registry.store_backend import StoreBackend
from swapmeet_serving import Call, Chunk, Engine, Output, Request, Sampling
from swapmeet_serving.kv_pages import KvPages
from swapmeet_serving.recall_watch import HEADS_A_LOOK, Done, RecallWatch, Users
from swapmeet_serving.replica import Replica
from swapmeet_serving.replica_settings import ReplicaSettings

SHORT = Sampling(max_tokens=6, ignore_eos=True)
ENDLESS = Sampling(max_tokens=400, ignore_eos=True)
PROMPT = "Tell me a short story about a village near the sea where people write letters."
KEPT = 5
"""Notices in a feed that is soon outgrown."""
SECONDS = 5.0
"""Within which a server must obey."""


@pytest.fixture(scope="module")
def replica_and_registry(
    tiny_llama: Path,
    random_lora: Callable[..., Path],
    replica_settings: Callable[..., ReplicaSettings],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Replica, Registry, Callable[[str], Version]]:
    folder = tmp_path_factory.mktemp("platform")
    settings = replica_settings(folder)
    registry = Registry(settings.registry)
    adapter = random_lora(tiny_llama, folder / "adapter", rank=2)

    def publish(name: str) -> Version:
        return registry.push(adapter, f"acme/{name}", base=settings.fingerprint)

    publish("other")
    return Replica(settings, "replica1"), registry, publish


@pytest.fixture
def replica(replica_and_registry: Any) -> Replica:
    found: Replica = replica_and_registry[0]
    return found


@pytest.fixture
def registry(replica_and_registry: Any) -> Registry:
    found: Registry = replica_and_registry[1]
    return found


@pytest.fixture
def publish(replica_and_registry: Any) -> Callable[[str], Version]:
    found: Callable[[str], Version] = replica_and_registry[2]
    return found


def call(version: Version | None, sampling: Sampling = SHORT, tenant: str = "acme") -> Call:
    name = f"{version}-{tenant}-{time.monotonic()}"
    return Call(name, prompt=PROMPT, adapter=version.pinned if version else None, sampling=sampling, tenant=tenant)


async def collect(replica: Replica, each: Call) -> list[Chunk]:
    return [chunk async for chunk in replica.generate(each)]


async def begun(chunks: AsyncIterator[Chunk]) -> AsyncIterator[Chunk]:
    await anext(chunks)
    return chunks


def wait_until(there: Callable[[], Any], seconds: float = SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := there()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def word(registry: Registry, version: Version) -> Reached:
    """What the replica says of a version, once it does."""
    return wait_until(lambda: next((each for each in registry.recalls.reach(version) if each.at), None))


@pytest.mark.parametrize("how", ["recall", "delete"])
def test_a_recall_ends_requests_and_leaves_nothing(
    how: str,
    replica: Replica,
    registry: Registry,
    publish: Callable[[str], Version],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = replica._engine.step

    def slowly() -> list[Output]:
        time.sleep(0.01)  # so that 400 tokens outlast the second between two looks
        return step()

    monkeypatch.setattr(replica._engine, "step", slowly)
    version = publish(how)
    other = registry.resolve("acme/other")
    error = {"recall": Recalled, "delete": NotFound}[how]

    async def run() -> None:
        ending = [await begun(replica.generate(call(version, ENDLESS, tenant))) for tenant in ("acme", "zeta")]
        going_on = await begun(replica.generate(call(other, Sampling(max_tokens=300, ignore_eos=True))))
        await asyncio.to_thread(getattr(registry, how), str(version), "it leaks names")
        for chunks in ending:
            with pytest.raises(error, match="it leaks names"):
                async for _ in chunks:
                    pass
        assert len([chunk async for chunk in going_on]) == 299
        with pytest.raises(error, match="it leaks names"):
            await collect(replica, call(version))
        assert len(await collect(replica, call(other))) == 6
        assert len(await collect(replica, call(None))) == 6

    asyncio.run(run())
    assert version.pinned not in replica._engine.resident
    assert version.pinned not in replica._folders
    pages = replica._engine._pages
    assert not any(isinstance(parent, tuple) and version.pinned in dict(parent[1]) for parent, _ in pages._nodes)
    said = word(registry, version)
    assert (said.server, said.alive, said.held, said.ended) == ("replica1", True, True, 2)
    assert said.tenants == ("acme", "zeta")


def test_what_was_not_held_is_obeyed_too(
    replica: Replica, registry: Registry, publish: Callable[[str], Version]
) -> None:
    version = publish("unused")
    registry.recall(str(version), "wrong data")
    said = word(registry, version)
    assert (said.held, said.ended, said.tenants) == (False, 0, ())
    with pytest.raises(Recalled, match="wrong data"):
        asyncio.run(collect(replica, call(version)))


def test_a_yank_and_a_moved_alias_end_nothing(
    replica: Replica, registry: Registry, publish: Callable[[str], Version]
) -> None:
    version = publish("yanked")
    assert len(asyncio.run(collect(replica, call(version)))) == 6
    registry.yank(str(version), "old")
    time.sleep(1.5)
    assert len(asyncio.run(collect(replica, call(version)))) == 6
    assert registry.recalls.reach(registry.resolve(version.pinned))[0].at is None


def test_the_head_alone_is_enough(
    replica: Replica, registry: Registry, publish: Callable[[str], Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever recalls is killed before the feed; the server looks at the heads of what it holds."""
    version = publish("crash")
    asyncio.run(collect(replica, call(version)))
    assert version.pinned in replica._engine.resident
    monkeypatch.setattr("swapmeet_serving.recall_watch.HEAD_SECONDS", 0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fault, "hook", _kill_at("recall.head"))
        with pytest.raises(StoreError):
            registry.recall(str(version), "found out")
    assert version.digest not in [notice.digest for notice in registry.recalls.after().notices]
    wait_until(lambda: version.pinned not in replica._engine.resident and version.pinned not in replica._folders)
    said = word(registry, version)
    assert (said.held, said.tenants) == (True, ("acme",))
    with pytest.raises(Recalled, match="found out"):
        asyncio.run(collect(replica, call(version)))


def test_a_recall_that_can_not_be_obeyed_yet_keeps_no_other_from_it(
    registry: Registry, publish: Callable[[str], Version]
) -> None:
    stuck, next_one = publish("stuck"), publish("after")
    dropped: list[str] = []

    def obey(adapter: str, _: Exception) -> Done:
        if adapter == stuck.pinned and not mended:
            raise RuntimeError("busy")
        dropped.append(adapter)
        return Done(held=True, ended=0)

    watch = RecallWatch(registry, "tiny", "replica2", list, obey, Users(), dead=lambda: True)
    mended = False
    for version in (stuck, next_one):
        registry.recall(str(version), "wrong")
    with pytest.raises(RuntimeError, match="busy"):
        watch.look()
    assert next_one.pinned in dropped
    assert stuck.pinned not in dropped
    mended = True
    watch.look()
    assert stuck.pinned in dropped


class Watched:
    """A watch that looks when it is told to, over the versions that a server holds; `failing` ones can not be read."""

    def __init__(self, registry: Registry, monkeypatch: pytest.MonkeyPatch, *held: Version) -> None:
        self.held, self.failing, self.read = {each.pinned for each in held}, set[str](), list[str]()
        head = registry.head

        def reading(name: str) -> Head:
            self.read.append(name)
            if name in self.failing:
                raise StoreError("away")
            return head(name)

        monkeypatch.setattr(registry, "head", reading)
        self.server = f"watched{time.monotonic_ns()}"
        self.watch = RecallWatch(
            registry, "tiny", self.server, lambda: self.held, self._obey, Users(), dead=lambda: True
        )

    def _obey(self, adapter: str, _: Exception) -> Done:
        held = adapter in self.held
        self.held.discard(adapter)
        return Done(held, ended=0)


def swept(registry: Registry, how: str) -> None:
    """Have the feed forget what it says: it is deleted, grows again to more than it had, or both; or grows too much."""
    assert isinstance(registry.backend, StoreBackend)
    recalls = registry.recalls
    told = len(recalls.after().notices)
    if how != "outgrown":
        registry.backend.store.delete(FEED)
    if how != "deleted":
        another = registry.resolve("acme/other")
        gone = replace(another, recalled="wrong", digest=f"sha256:{'0' * 64}")
        for _ in range(KEPT + 1 if how == "outgrown" else told + 1):
            recalls.tell(gone)


@pytest.mark.parametrize("how", ["outgrown", "deleted", "deleted and grown"])
def test_a_server_that_missed_notices_looks_at_all_that_it_holds(
    how: str, registry: Registry, publish: Callable[[str], Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, however many there are; and what can not be read, at each look until it can."""
    monkeypatch.setattr("swapmeet_registry.recalls.KEPT", KEPT)
    versions = [publish(f"many{number}") for number in range(2 * HEADS_A_LOOK + 1)]
    gone, stuck, *_ = versions
    seen = Watched(registry, monkeypatch, *versions)
    registry.recalls.tell(replace(versions[2], recalled="wrong", digest=f"sha256:{'1' * 64}"))
    for _ in range(len(versions)):  # the turn of all has come, and comes again in half a minute
        seen.watch.look()
    seen.read.clear()
    seen.watch.look()
    assert (len(seen.held), seen.read) == (len(versions), [])

    registry.recall(str(gone), "wrong")
    registry.recall(str(stuck), "wrong")
    swept(registry, how)
    seen.failing = {stuck.name}
    for _ in range(3):
        with pytest.raises(StoreError, match="away"):
            seen.watch.look()
        assert (gone.pinned in seen.held, stuck.pinned in seen.held) == (False, True)
        assert seen.watch._followed != seen.watch._place, "nobody is told that it obeyed what it did not see"
    assert sorted(set(seen.read)) == sorted(each.name for each in versions)
    assert len(seen.read) == len(versions) + 2, "those that were read are not read again"
    seen.failing.clear()
    seen.watch.look()
    assert stuck.pinned not in seen.held
    assert seen.watch._followed == seen.watch._place == registry.recalls.after().place
    assert len(seen.held) == len(versions) - 2


def test_a_feed_that_can_not_be_read_keeps_no_head_from_being_read(
    registry: Registry, publish: Callable[[str], Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(registry.backend, StoreBackend)
    version = publish("unfed")
    seen = Watched(registry, monkeypatch, version)
    store = registry.backend.store
    store.delete(FEED)
    store.swap(FEED, b"{}", None)
    registry.recall(str(version), "wrong")
    with pytest.raises(Corrupt, match="Delete it"):
        seen.watch.look()
    assert seen.held == set()
    store.delete(FEED)
    seen.watch.look()


def _kill_at(step: str) -> Callable[[str], None]:
    def hook(reached: str) -> None:
        if reached == step:
            raise StoreError("killed")

    return hook


def test_a_load_under_way_ends_with_the_recall(
    tiny_llama: Path, random_lora: Callable[..., Path], make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    """Whatever of loading was under way; then the room is there again, and others are served."""
    folder = random_lora(tiny_llama, tmp_path / "adapter", rank=2)
    fetching, go_on = threading.Event(), threading.Event()

    def fetch(identity: str) -> Path:
        if identity == "slow":
            fetching.set()
            assert go_on.wait(30)
        return folder

    engine = make_engine(tiny_llama, fetch=fetch)
    engine.submit(Request("r", (5, 6, 7), "slow", SHORT))
    outputs = engine.step()
    assert fetching.wait(30)
    ended = engine.withdraw("slow", Recalled("no more"))
    outputs += engine.step()
    assert (ended.result(0), [type(each.error) for each in outputs]) == (1, [Recalled])
    with pytest.raises(Recalled):
        engine.submit(Request("s", (5, 6, 7), "slow", SHORT))
    go_on.set()
    wait_until(lambda: engine.step() == [] and not engine._adapters._under_way)
    assert (engine.resident, engine._bank.used, engine._adapters._withdrawn) == ([], 0, {})
    engine.submit(Request("t", (5, 6, 7), "quick", SHORT))
    found: list[Any] = []
    wait_until(lambda: found.extend(engine.step()) or not engine.busy)
    assert found[-1].finish_reason == "length"


def test_pages_below_a_root_are_found_no_more() -> None:
    pages = KvPages(8, 2)
    held = pages.allocate(4) or []
    first = pages.keep(("a", "x"), (1, 2), held[0])
    pages.keep(first, (3, 4), held[1])
    pages.keep(("a", "y"), (1, 2), held[2])
    pages.release(held[:1] + held[2:])
    pages.forget_below(lambda root: root == ("a", "x"))
    assert pages.find(("a", "x"), (1, 2, 3, 4))[0] == []
    assert pages.find(("a", "y"), (1, 2))[0] == [held[2]]
    pages.release(held[1:2])
    pages.release(held[2:3])
    assert (pages.free, pages.idle) == (8, 1)
    assert len(pages.allocate(8) or []) == 8
