"""What can go wrong with a local folder: a full disk, no permission, several processes, a crash."""

import errno
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import Conflict, Fingerprint, Registry, StoreDenied, StoreError, StoreFull, fault, open_store
from swapmeet_registry.admission.admit import admit
from swapmeet_registry.stores import Stored, local
from swapmeet_registry.stores import files as files_module

COUNT = """
import sys
from swapmeet_registry import Conflict, open_store
store = open_store(sys.argv[1])
for _ in range(20):
    while True:
        stored = store.get("counter")
        value = int(stored.data) if stored else 0
        try:
            store.swap("counter", b"%d" % (value + 1), stored.etag if stored else None)
            break
        except Conflict:
            pass
"""


def put(root: Path, data: bytes) -> None:
    open_store(root.as_uri()).put("folder/a", data, hashlib.sha256(data).hexdigest())


def files(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*") if path.is_file())


def test_processes_lose_no_update(tmp_path: Path) -> None:
    url = tmp_path.as_uri()
    counters = [subprocess.Popen([sys.executable, "-c", COUNT, url]) for _ in range(4)]
    assert [counter.wait(60) for counter in counters] == [0] * 4
    stored = open_store(url).get("counter")
    assert stored is not None
    assert int(stored.data) == 80


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: what a full disk looks like to one process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_nothing_half_made(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    with file_limit(1000):
        with pytest.raises(StoreFull, match=r"^Can not write .*registry/folder/a: File too large\. Free some space"):
            put(root, b"x" * 100_000)
        store = open_store(root.as_uri())
        etag = store.swap("head", b"1", None)
        with pytest.raises(StoreFull):
            store.swap("head", b"x" * 100_000, etag)
    stored = store.get("head")
    assert stored is not None
    assert stored.data == b"1"
    assert [name for name in files(root) if len(name) > 2] == ["head"]  # and the locks, which are empty


@pytest.fixture
def readable_folder() -> Iterator[Path]:
    """A folder that everybody may read; pytest's own are closed to other users."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def not_root() -> Iterator[None]:
    """Root may write anywhere: step down for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_folder(readable_folder: Path) -> None:
    put(readable_folder, b"1")
    for folder in (readable_folder / "folder", readable_folder):
        folder.chmod(0o555)
    try:
        with not_root():
            store = open_store(readable_folder.as_uri())
            stored = store.get("folder/a")
            assert stored is not None
            assert stored.data == b"1"
            with pytest.raises(StoreDenied, match=r"^Can not write .*: Permission denied\. Check its owner"):
                put(readable_folder, b"2")
            with pytest.raises(StoreDenied):
                store.swap("head", b"1", None)
            with pytest.raises(StoreDenied, match=r"^Can not delete"):
                store.delete("folder/a")
    finally:
        readable_folder.chmod(0o755)


def test_a_folder_that_may_not_be_read(readable_folder: Path, base: Fingerprint, make_adapter: Any) -> None:
    make_adapter(readable_folder)
    (readable_folder / "adapter_config.json").chmod(0)
    refused = pytest.raises(StoreDenied, match=r"^Can not read .*: Permission denied\.")
    with not_root(), refused, admit(readable_folder, base):
        pass


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "registry").write_text("not a folder")
    with pytest.raises(StoreError, match=r"^Can not write .*: (File exists|Not a directory)\.$"):
        put(tmp_path / "registry", b"1")


@pytest.mark.parametrize("step", [step for step in fault.STEPS if step.startswith("local.")])
def test_a_failure_at_any_step_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    store = open_store(tmp_path.as_uri())
    etag = store.swap("head", b"old", None)

    def fail(reached: str) -> None:
        if reached == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(fault, "hook", fail)
    with pytest.raises(KeyboardInterrupt):
        store.swap("head", b"new", etag)
    monkeypatch.undo()
    stored = store.get("head")
    assert stored is not None
    assert stored.data == (b"new" if step in ("local.renamed", "local.folder_synced") else b"old")
    assert list(store.list("")) == ["head"]
    assert not list(tmp_path.rglob("*.partial"))
    store.swap("head", b"newer", stored.etag)


def test_what_a_killed_writer_left_is_not_listed_and_does_not_hinder(tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri())
    (tmp_path / ".head.partial").write_text("half")
    assert list(store.list("")) == []
    store.swap("head", b"1", None)
    with pytest.raises(Conflict):
        store.swap("head", b"2", None)
    assert not (tmp_path / ".head.partial").exists()


def test_a_folder_that_vanishes_is_not_an_empty_store(tmp_path: Path) -> None:
    """As if its disk were not mounted: the folder is there, and nothing is in it."""
    root, away = tmp_path / "disk", tmp_path / "away"
    store, digest = open_store(root.as_uri()), hashlib.sha256(b"1").hexdigest()
    root.mkdir()
    assert (store.get("a"), store.size("a"), store.stream("a"), list(store.list(""))) == (None, None, None, [])
    store.put("folder/a", b"1", digest)
    for mountpoint in (True, False):
        root.rename(away)
        if mountpoint:
            root.mkdir()
        for attempt in (
            lambda: store.get("folder/a"),
            lambda: store.size("folder/a"),
            lambda: store.stream("folder/a"),
            lambda: list(store.list("")),
            lambda: store.put("folder/b", b"1", digest),
            lambda: store.swap("head", b"1", None),
            lambda: store.delete("folder/a"),
            lambda: open_store(root.as_uri()).get("head"),
        ):
            with pytest.raises(StoreError, match=r"disk was in use, and is empty or gone now\. Is its disk mounted\?"):
                attempt()
        assert root.exists() == mountpoint
        if mountpoint:
            assert list(root.iterdir()) == [], "nothing is written under the disk"
            root.rmdir()
        away.rename(root)
        assert list(store.list("")) == ["folder/a"]


def test_a_reader_knows_a_used_folder_by_its_first_hit_or_is_told(tmp_path: Path) -> None:
    put(tmp_path / "read", b"1")
    put(tmp_path / "told", b"1")
    read, told = (tmp_path / name for name in ("read", "told"))
    code = f"""
import shutil
from swapmeet_registry import StoreError, open_store
store = open_store({read.as_uri()!r})
assert store.get("folder/a")
for root, store in (({str(read)!r}, store), ({str(told)!r}, open_store({told.as_uri()!r}, used=True))):
    shutil.rmtree(root)
    try:
        store.get("folder/a")
    except StoreError:
        continue
    raise SystemExit(root)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_swap_that_is_seen_but_not_durable_happens_once(
    make_adapter: Any, tmp_path: Path, base: Fingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails between the rename and its being written down: as if the answer had been lost."""
    registry, folder = Registry((tmp_path / "registry").as_uri()), make_adapter(tmp_path / "adapter")
    registry.push(folder, "acme/legal", base=base)
    sync_folder, broken = files_module.sync_folder, tmp_path / "registry" / "heads" / "acme"

    def failing(place: Path) -> None:
        if place == broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync_folder(place)

    with monkeypatch.context() as patched:
        for module in (files_module, local):
            patched.setattr(module, "sync_folder", failing)
        with pytest.raises(
            StoreError, match=r"legal.json .* was written, but is not sure to outlive a power cut: Input"
        ):
            registry.push(folder, "acme/legal", base=base, run="run-1")
        with pytest.raises(StoreError, match=r"Input/output error"):  # also not to who does the same again
            registry.push(folder, "acme/legal", base=base, run="run-1")
    assert registry.push(folder, "acme/legal", base=base, run="run-1").version == 2
    assert [version.version for version in registry.show("acme/legal").versions] == [1, 2]


def test_a_swap_that_fails_before_it_is_seen_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path.as_uri())
    etag = store.swap("heads/x", b"1", None)
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
        with pytest.raises(StoreError, match=r"Can not write"):
            store.swap("heads/x", b"2", etag)
    assert store.get("heads/x") == Stored(b"1", etag)
