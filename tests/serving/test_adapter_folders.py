"""Adapters on disk, fetched by several threads and processes at once while others make room."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from swapmeet_registry import BaseMismatch, Fingerprint, Registry
from swapmeet_registry.copies import pulling
from swapmeet_registry.fingerprint import fingerprint
from swapmeet_serving import disk_tier
from swapmeet_serving.adapter_folders import AdapterFolders

WEIGHTS = "adapter_model.safetensors"
FETCHES = """
import random, sys
from contextlib import nullcontext
from pathlib import Path
from swapmeet_registry import Fingerprint, Registry
from swapmeet_serving import disk_tier
from swapmeet_serving.adapter_folders import AdapterFolders

disk_tier.RECENT_SECONDS = 0.3
url, root, base, budget, seed, *names = sys.argv[1:]
base = Fingerprint.model_validate_json(base)
folders = AdapterFolders(Path(root), Registry(url), base, lambda *_: nullcontext(), int(budget))
dice = random.Random(seed)
print("begun", flush=True)
for _ in range(60):
    (folders.fetch(dice.choice(names)) / "adapter_model.safetensors").read_bytes()
"""


@dataclass
class Shelf:
    url: str
    base: Fingerprint
    sources: dict[str, Path]
    size: int

    def folders(self, root: Path, room: int) -> AdapterFolders:
        return AdapterFolders(root, Registry(self.url), self.base, lambda *_: nullcontext(), room * self.size)


@pytest.fixture(scope="module")
def shelf(tiny_llama: Path, random_lora: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """Four adapters in a registry, equally large on disk but for a few bytes."""
    folder = tmp_path_factory.mktemp("shelf")
    url, base = f"file://{folder}/registry", fingerprint(tiny_llama, "tiny")
    sources = {}
    for seed in range(4):
        source = random_lora(tiny_llama, folder / str(seed), rank=2, seed=seed)
        sources[Registry(url).push(source, f"acme/n{seed}", base=base).pinned] = source
    Registry(url).pull("acme/n0", folder / "pulled")
    size = sum(file.stat().st_size for file in (folder / "pulled").iterdir()) + 1000
    return Shelf(url, base, sources, size)


def assert_right(adapter: str, folder: Path, shelf: Shelf) -> None:
    assert (folder / WEIGHTS).read_bytes() == (shelf.sources[adapter] / WEIGHTS).read_bytes()


def test_the_longest_unused_make_room(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_tier, "RECENT_SECONDS", 0.0)
    folders = shelf.folders(tmp_path / "cache", 2)
    a, b, c, _ = shelf.sources
    for adapter in (a, b, a, c):
        assert_right(adapter, folders.fetch(adapter), shelf)
    assert (a in folders, b in folders, c in folders) == (True, False, True)
    assert len(folders.digests()) == 2
    assert_right(b, folders.fetch(b), shelf)
    assert len(folders._turns) == 0


def test_the_bound_holds_while_adapters_are_fetched(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is half written counts; looked at when an adapter's bytes are all there, but not yet in their place."""
    monkeypatch.setattr(disk_tier, "RECENT_SECONDS", 0.0)
    folders, root = shelf.folders(tmp_path / "cache", 2), tmp_path / "cache"
    taken: list[int] = []
    sync_folder = pulling.sync_folder

    def looking(folder: Path) -> None:
        taken.append(sum(file.stat().st_size for file in root.rglob("*") if file.is_file()))
        sync_folder(folder)

    monkeypatch.setattr(pulling, "sync_folder", looking)
    for adapter in (*shelf.sources, *shelf.sources):
        assert_right(adapter, folders.fetch(adapter), shelf)
    assert len(taken) >= 8
    assert max(taken) <= 2 * shelf.size


def test_nothing_makes_room_for_what_is_refused(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_tier, "RECENT_SECONDS", 0.0)
    a, b, c, _ = shelf.sources
    folders = shelf.folders(tmp_path / "cache", 2)
    folders.fetch(a)
    folders.fetch(b)
    elsewhere = Fingerprint(**shelf.base.model_dump() | {"weights": "sha256:" + "f" * 64})
    other = AdapterFolders(tmp_path / "cache", Registry(shelf.url), elsewhere, lambda *_: nullcontext(), 2 * shelf.size)
    with pytest.raises(BaseMismatch):
        other.fetch(c)
    assert len(folders.digests()) == 2


def test_what_is_damaged_or_gone_is_fetched_anew(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = shelf.folders(tmp_path / "cache", 4)
    adapter = next(iter(shelf.sources))
    folder = folders.fetch(adapter)
    (folder / WEIGHTS).write_bytes(b"")
    assert_right(adapter, folders.fetch(adapter), shelf)
    use = folders._disk.use

    def going(folder: Path) -> bool:
        found = use(folder)
        shutil.rmtree(folder)
        return found

    monkeypatch.setattr(folders._disk, "use", going)
    assert_right(adapter, folders.fetch(adapter), shelf)
    monkeypatch.undo()
    elsewhere = Fingerprint(**shelf.base.model_dump() | {"weights": "sha256:" + "f" * 64})
    other = AdapterFolders(tmp_path / "cache", Registry(shelf.url), elsewhere, lambda *_: nullcontext(), 1 << 30)
    with pytest.raises(BaseMismatch):
        other.fetch(adapter)
    assert_right(adapter, folder, shelf)


@pytest.mark.slow
def test_processes_share_the_folder_and_one_is_killed(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_tier, "RECENT_SECONDS", 0.3)
    root, names = tmp_path / "cache", list(shelf.sources)
    given = [shelf.url, str(root), shelf.base.model_dump_json(), str(2 * shelf.size)]
    others = [
        subprocess.Popen([sys.executable, "-c", FETCHES, *given, str(seed), *names], stdout=subprocess.PIPE, text=True)
        for seed in range(3)
    ]
    for process in others:
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
    folders = shelf.folders(root, 2)

    def fetch(number: int) -> None:
        adapter = names[number * number % 5 % 4]
        assert_right(adapter, folders.fetch(adapter), shelf)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fetch, range(40)))
        others[0].send_signal(signal.SIGKILL)
        list(pool.map(fetch, range(40)))
    codes = [process.wait(60) for process in others]
    for process in others:
        assert process.stdout
        process.stdout.close()
    assert codes[1:] == [0, 0]
    assert len(folders._turns) == 0
    (root / ".left.0.partial").mkdir()
    time.sleep(0.4)
    monkeypatch.setattr(disk_tier, "ABANDONED_SECONDS", 0.0)
    folders._disk.make_room()
    assert len(os.listdir(root)) == len(folders.digests()) == 2
    for adapter in names:
        assert_right(adapter, folders.fetch(adapter), shelf)
