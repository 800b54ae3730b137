"""The way into memory where it is interrupted: nobody waits any more, files had to make room, a load failed."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_serving.adapter_bank import AdapterBank
from swapmeet_serving.adapters import Adapters, Readiness
from swapmeet_serving.host_tier import HostCopy, HostTier


class AtOnce:
    """A loader whose jobs run when `finished` is asked."""

    def __init__(self) -> None:
        self.jobs: list[tuple[str, Callable[[], Any]]] = []

    def start(self, identity: str, job: Callable[[], Any]) -> None:
        self.jobs.append((identity, job))

    def finished(self) -> list[tuple[str, Any]]:
        jobs, self.jobs = self.jobs, []
        return [(identity, self._result(job)) for identity, job in jobs]

    def _result(self, job: Callable[[], Any]) -> Any:
        try:
            return job()
        except Exception as error:
            return error


class Disk:
    """Adapters' folders, and opening and reading what is in them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fetched: list[str] = []
        self.gone: set[str] = set()
        """They go once right after they were fetched."""

    def fetch(self, identity: str) -> Path:
        self.fetched.append(identity)
        folder = self.root / identity
        folder.mkdir(exist_ok=True)
        if identity in self.gone:
            self.gone.remove(identity)
            folder.rmdir()
        return folder

    def open(self, folder: Path, _: str) -> "File":
        if not folder.exists():
            raise ValueError("It has no weights.")
        return File(folder)


class File:
    size = 10
    portable = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self) -> str:
        if not self.folder.exists():
            raise FileNotFoundError(self.folder)
        return self.folder.name


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def brought(packed: str) -> str:
    return f"{packed} on the device"


def make(disk: Disk, host: int) -> Adapters:
    loader: Any = AtOnce()
    return Adapters(AdapterBank(10), loader, disk.fetch, disk.open, brought, HostTier(host))


@pytest.fixture
def adapters(disk: Disk) -> Adapters:
    return make(disk, 0)


def test_what_nobody_waits_for_when_it_is_found_is_not_kept(adapters: Adapters) -> None:
    adapters.prepare("a")
    adapters.forget("a")
    assert adapters.collect() == {}
    assert not adapters._at_hand
    assert not adapters._unwanted
    adapters.prepare("a")
    adapters.forget("a")
    adapters.prepare("a")
    adapters.collect()
    assert list(adapters._at_hand) == ["a"], "somebody waits again"
    adapters.prepare("a")
    adapters.forget("a")
    adapters.collect()
    assert adapters.prepare("a") is Readiness.READY, "what is read already stays"
    assert not adapters._unwanted


def test_files_that_made_room_are_fetched_again(adapters: Adapters, disk: Disk) -> None:
    disk.gone.add("a")
    adapters.prepare("a")
    assert adapters.collect() == {}
    (disk.root / "a").rmdir()
    adapters.prepare("a")
    assert adapters.collect() == {}
    assert adapters.weights("a") == "a on the device"
    assert disk.fetched == ["a", "a", "a"]


def test_files_that_are_there_and_wrong_are_not(
    adapters: Adapters, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise ValueError("It has no weights.")

    monkeypatch.setattr(adapters, "_open", refuse)
    adapters.prepare("a")
    assert str(adapters.collect()["a"]) == "It has no weights."
    assert disk.fetched == ["a"]


def test_a_failure_told_often_does_not_grow(adapters: Adapters, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> Path:
        raise OSError("no such adapter")

    monkeypatch.setattr(adapters, "_fetch", fail)
    adapters.prepare("a")
    adapters.collect()
    lengths = set()
    for _ in range(20):
        with pytest.raises(OSError, match="no such adapter") as caught:
            adapters.check(("a",))
        lengths.add(len(traceback.extract_tb(caught.value.__traceback__)))
    assert len(lengths) == 1
    assert "fail" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]


def load(adapters: Adapters, identity: str) -> None:
    while adapters.prepare(identity) is not Readiness.READY:
        assert not adapters.collect()


def test_what_left_the_device_comes_back_from_host_memory(disk: Disk) -> None:
    adapters = make(disk, 20)
    for identity in ("a", "b", "a", "b"):
        load(adapters, identity)
        assert adapters.resident == [identity]
        assert adapters.weights(identity) == f"{identity} on the device"
    assert disk.fetched == ["a", "b"]
    load(adapters, "c")  # which has the place of the longest unused
    load(adapters, "a")
    assert disk.fetched == ["a", "b", "c", "a"]


def test_what_is_not_all_in_host_memory_is_not_kept_there(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(File, "portable", False)
    adapters = make(disk, 20)
    for identity in ("a", "b", "a"):
        load(adapters, identity)
    assert disk.fetched == ["a", "b", "a"]


def test_host_memory_stays_within_its_budget() -> None:
    tier = HostTier(10)
    for identity, size in [("a", 4), ("b", 4), ("a", 6), ("huge", 11), ("c", 4)]:
        tier.keep(identity, HostCopy(size, identity))
    assert tier.identities == ["a", "c"]
    tier.get("a")
    tier.keep("d", HostCopy(4, "d"))
    assert tier.identities == ["a", "d"]
    assert tier.get("c") is None
