"""What `Store` promises, held against every store."""

import hashlib
import os
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from swapmeet_registry import Conflict, InvalidName, Refused, Store, open_store
from swapmeet_registry.stores import Stored

ODD_KEYS = [
    "a",
    "a b/c+d%20e&f?g#h",
    "x=y;z,@:$!'()*~`^|{}[]<>\"",
    "a/b/c/d/e/f/g/h",
    "n" * 190,
    "%2e%2e/x",
    "a..b/c..",
]
NO_KEYS = ["", "/a", "a/", "a//b", "../a", "a/..", "a/./b", ".hidden", "a/.b", "a\\b", "a\nb", "ä", "a\0", "n" * 201]


@pytest.fixture
def store(store_url: str) -> Store:
    return open_store(store_url)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put(store: Store, key: str, data: bytes) -> None:
    store.put(key, data, sha256(data))


def test_what_is_not_there(store: Store) -> None:
    assert store.get("a/b") is None
    assert store.stream("a/b") is None
    assert store.size("a/b") is None
    assert list(store.list("")) == list(store.list("a/")) == []
    store.delete("a/b")


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (3 << 20) + 7])
def test_bytes_and_files_come_back(store: Store, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    put(store, "from/bytes", data)
    store.put("from/file", tmp_path / "file", sha256(data))
    for key in ("from/bytes", "from/file"):
        stored = store.get(key)
        assert stored is not None
        assert stored.data == data
        assert b"".join(store.stream(key) or ()) == data
        assert store.size(key) == size


def test_a_put_is_repeatable(store: Store) -> None:
    for _ in range(3):
        put(store, "a", b"same")
    assert list(store.list("")) == ["a"]


def test_a_put_of_other_bytes_writes_nothing(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"other")
    put(store, "b", b"old")
    for source in (b"other", tmp_path / "file"):
        for key in ("a", "b"):
            with pytest.raises(Refused, match=r"changed while it was published"):
                store.put(key, source, sha256(b"old"))
    assert store.get("a") is None
    stored = store.get("b")
    assert stored is not None
    assert stored.data == b"old"


@pytest.mark.parametrize("key", ODD_KEYS)
def test_odd_keys(store: Store, key: str) -> None:
    put(store, key, key.encode())
    etag = store.swap(f"{key}-swapped", b"1", None)
    store.swap(f"{key}-swapped", b"2", etag)
    stored = store.get(key)
    assert stored is not None
    assert stored.data == key.encode()
    assert list(store.list("")) == [key, f"{key}-swapped"]


@pytest.mark.parametrize("key", NO_KEYS)
def test_what_is_no_key_is_refused_everywhere(store: Store, key: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.get(key),
        lambda: store.stream(key),
        lambda: store.size(key),
        lambda: store.delete(key),
        lambda: put(store, key, b""),
        lambda: store.swap(key, b"", None),
    ]
    for call in calls:
        with pytest.raises(InvalidName, match=r"is not a key"):
            call()


def test_list_gives_the_keys_of_a_prefix_in_order(store: Store) -> None:
    keys = ["a/b", "a/c/d", "a.b", "ab", "b"]
    for key in keys:
        put(store, key, b"")
    assert list(store.list("")) == sorted(keys)
    assert list(store.list("a/")) == ["a/b", "a/c/d"]
    assert list(store.list("a")) == ["a.b", "a/b", "a/c/d", "ab"]
    assert list(store.list("a/c")) == ["a/c/d"]
    assert list(store.list("c")) == []


def test_scan_says_size_and_time(store: Store) -> None:
    before = time.time()
    put(store, "a/b", b"12345")
    etag = store.swap("a/c", b"1", None)
    entries = list(store.scan("a/"))
    assert [(entry.key, entry.size) for entry in entries] == [("a/b", 5), ("a/c", 1)]
    assert all(before - 2 <= entry.written_at <= time.time() + 2 for entry in entries)
    assert entries[1].etag in (etag, None)
    assert list(store.scan("b")) == []


def test_delete(store: Store) -> None:
    put(store, "a", b"")
    store.delete("a")
    assert store.size("a") is None
    assert list(store.list("")) == []


def test_swap_creates_once_and_replaces_only_what_is_expected(store: Store) -> None:
    with pytest.raises(Conflict, match=r"first. Read it again"):
        store.swap("head", b"0", "0" * 32)
    first = store.swap("head", b"1", None)
    stored = store.get("head")
    assert stored is not None
    assert (stored.data, stored.etag) == (b"1", first)
    with pytest.raises(Conflict):
        store.swap("head", b"2", None)
    second = store.swap("head", b"2", first)
    with pytest.raises(Conflict):
        store.swap("head", b"3", first)
    stored = store.get("head")
    assert stored is not None
    assert (stored.data, stored.etag) == (b"2", second)


def test_a_race_has_one_winner(store: Store) -> None:
    threads = 8
    barrier = threading.Barrier(threads)

    def attempt(key: str, data: bytes, expected: str | None) -> str | None:
        barrier.wait()
        try:
            return store.swap(key, data, expected)
        except Conflict:
            return None

    def race(key: str, expected: str | None) -> str:
        datas = [f"{key} {expected} {number}".encode() for number in range(threads)]
        etags = list(pool.map(attempt, [key] * threads, datas, [expected] * threads))
        (winner,) = [number for number, etag in enumerate(etags) if etag]
        assert store.get(key) == Stored(datas[winner], str(etags[winner]))
        return str(etags[winner])

    with ThreadPoolExecutor(threads) as pool:
        for turn in range(10):
            race(f"race-{turn}", race(f"race-{turn}", None))  # to create it, then to replace it


def test_a_counter_loses_no_update(store: Store) -> None:
    threads, each = 6, 8

    def count() -> None:
        for _ in range(each):
            while True:
                stored = store.get("counter")
                value = int(stored.data) if stored else 0
                try:
                    store.swap("counter", b"%d" % (value + 1), stored.etag if stored else None)
                    break
                except Conflict:
                    continue

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(count) for _ in range(threads)]:
            done.result()
    stored = store.get("counter")
    assert stored is not None
    assert int(stored.data) == threads * each


def test_a_store_can_be_pickled_and_opened_by_its_url(store: Store) -> None:
    put(store, "a", b"1")
    for copy in (pickle.loads(pickle.dumps(store)), open_store(store.url)):
        assert copy.url == store.url
        assert copy.get("a").data == b"1"


@pytest.mark.parametrize("url", ["", "registry", "/tmp/x", "file://", "file:a", "file://host/x", "s3://", "gs://b/x"])
def test_an_url_of_no_known_kind_is_refused(url: str) -> None:
    with pytest.raises(InvalidName, match=r"is not a store\. Write file:///FOLDER or s3://BUCKET/PREFIX\."):
        open_store(url)


@pytest.mark.parametrize("url", ["file:///", "file:///a%00b", "file:///a?x=1", "file:///a#b"])
def test_a_folder_that_an_url_would_name_otherwise_is_refused(url: str) -> None:
    with pytest.raises(InvalidName, match=r"names no folder\. Write file:///FOLDER, with %3F for \? and %23 for #"):
        open_store(url)


@pytest.mark.parametrize("prefix", ["..", "a/../b", "%2e%2e/a", "a//b", "./a", "a%0Ab", "a#b", "%ff"])
def test_a_prefix_that_servers_change_is_refused(prefix: str) -> None:
    with pytest.raises(InvalidName, match=r"has a prefix that not every S3 server keeps"):
        open_store(f"s3://bucket/{prefix}")


@pytest.mark.parametrize("name", ["a b", "\u00e9", "a?b#c%20", b"\xff"])
def test_a_folder_of_any_name_is_found_again_by_its_url(tmp_path: Path, name: str | bytes) -> None:
    root = tmp_path / os.fsdecode(name)
    store = open_store(root.as_uri())
    store.swap("a", b"1", None)
    assert open_store(store.url).get("a") == store.get("a")
    assert (root / "a").is_file()


@pytest.mark.parametrize("url", ["s3://[", "s3://[::1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidName, match=r"is no address"):
        open_store(url)


def test_a_hub_is_no_store() -> None:
    with pytest.raises(InvalidName, match=r"A Hub keeps adapters only\. Write file:///FOLDER or s3://BUCKET/PREFIX\."):
        open_store("hf://acme")
