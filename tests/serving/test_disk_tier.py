"""Folders on disk within a budget: those longest unused go, and what killed processes left."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from swapmeet_serving.disk_tier import ABANDONED_SECONDS, RECENT_SECONDS, DiskTier

SIZE = 100


class Disk:
    """A tier with room for two folders, and a clock."""

    def __init__(self, root: Path) -> None:
        self.now = 1_000_000.0
        self.root = root
        self.tier = DiskTier(root, 2 * SIZE, lambda: self.now)

    def add(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"x" * SIZE)
        self.use(name)
        return folder

    def use(self, name: str) -> bool:
        self.now += 1
        return self.tier.use(self.root / name)

    def later(self) -> None:
        self.now += RECENT_SECONDS + 1


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "adapters")


def test_the_longest_unused_go_first(disk: Disk) -> None:
    assert disk.tier.folders() == []
    for name in "abcd":
        disk.add(name)
    assert disk.use("a")
    disk.later()
    disk.tier.make_room()
    assert sorted(disk.tier.folders()) == ["a", "d"]
    assert sorted(os.listdir(disk.root)) == ["a", "d"], "nothing is left of the others"
    assert not disk.use("b")


def test_what_fits_stays_and_what_was_just_used_stays_anyway(disk: Disk) -> None:
    disk.add("a")
    disk.add("b")
    disk.later()
    disk.tier.make_room()
    assert len(disk.tier.folders()) == 2
    disk.add("c")
    disk.use("a")
    disk.add("d")
    disk.tier.make_room()
    assert sorted(disk.tier.folders()) == ["a", "c", "d"]


def test_room_is_made_before_anything_is_written(disk: Disk) -> None:
    for name in "ab":
        disk.add(name)
    disk.later()
    with disk.tier.writing() as make_room:
        make_room(SIZE)
        assert disk.tier.folders() == ["b"]
        with disk.tier.writing() as another:
            another(SIZE)
            assert disk.tier.folders() == [], "two are coming"
        disk.add("c")
        disk.later()
        disk.tier.make_room()
        assert disk.tier.folders() == ["c"], "one is coming still"
    disk.add("d")
    disk.later()
    disk.tier.make_room()
    assert sorted(disk.tier.folders()) == ["c", "d"], "nothing is coming"


def test_what_is_not_written_after_all_needs_no_room(disk: Disk) -> None:
    for name in "ab":
        disk.add(name)
    disk.later()
    with pytest.raises(KeyError), disk.tier.writing():
        raise KeyError
    with suppress(KeyError), disk.tier.writing() as make_room:
        make_room(SIZE)
        raise KeyError
    disk.add("c")
    disk.later()
    disk.tier.make_room()
    assert sorted(disk.tier.folders()) == ["b", "c"]


def test_one_that_is_used_meanwhile_stays(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        disk.add(name)
    disk.later()
    remove = disk.tier.remove

    def removing(folder: Path) -> None:
        remove(folder)
        disk.use("b")

    monkeypatch.setattr(disk.tier, "remove", removing)
    disk.tier._budget = 0
    disk.tier.make_room()
    assert sorted(os.listdir(disk.root)) == ["b"]


def test_two_who_make_room_at_once_do_not_take_twice(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcd":
        disk.add(name)
    disk.later()
    other = DiskTier(disk.root, 2 * SIZE, lambda: disk.now)
    remove = disk.tier.remove

    def second(folder: Path) -> None:
        other.make_room()
        remove(folder)

    monkeypatch.setattr(disk.tier, "remove", second)
    disk.tier.make_room()
    assert sorted(disk.tier.folders()) == ["c", "d"]


def test_what_killed_processes_left_goes_once_nobody_can_want_it(disk: Disk) -> None:
    disk.add("a")
    disk.add(".b.0123.going")
    disk.add(".c.0123.partial")
    (disk.root / ".d.0123.partial").mkdir()
    os.utime(disk.root / ".d.0123.partial", (disk.now, disk.now + ABANDONED_SECONDS))
    assert disk.tier.folders() == ["a"]
    disk.now += ABANDONED_SECONDS + 1
    disk.tier.make_room()
    assert sorted(os.listdir(disk.root)) == [".d.0123.partial", "a"]
