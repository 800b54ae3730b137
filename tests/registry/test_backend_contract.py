"""What `Backend` promises, held against every backend."""

import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import AdapterName, Conflict, Fingerprint, InvalidName, Registry, Version
from swapmeet_registry.admission.admit import Admitted, admit
from swapmeet_registry.backend import Backend, Staged, open_backend
from swapmeet_registry.head import Head
from swapmeet_registry.manifest import Manifest, StoredFile
from swapmeet_registry.publishing import manifest_of

NAME = AdapterName("acme", "legal")
NOW = "2026-01-01T00:00:00.000000Z"


@pytest.fixture
def backend(url: str) -> Backend:
    return open_backend(url)


@pytest.fixture
def folder(make_adapter: Callable[..., Path], tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "adapter")


@pytest.fixture
def admitted(folder: Path, base: Fingerprint) -> Iterator[Admitted]:
    with admit(folder, base) as admitted:
        yield admitted


@pytest.fixture
def manifest(admitted: Admitted, base: Fingerprint) -> Manifest:
    return manifest_of(admitted, NAME, base, {})


@pytest.fixture
def staged(backend: Backend, manifest: Manifest, admitted: Admitted) -> Staged:
    return backend.stage(NAME, manifest, admitted.folder)


def first(manifest: Manifest, nonce: str = "nonce") -> Head:
    return Head(adapter=str(NAME)).publish(manifest.digest, NOW, nonce)


def version(manifest: Manifest) -> Version:
    return Version(str(NAME), 1, manifest.digest, NOW)


def test_what_is_not_there(backend: Backend) -> None:
    assert backend.head(NAME) is None
    assert backend.names() == []
    assert backend.absence(NAME).startswith("Check its name")


def test_what_is_gone(backend: Backend, manifest: Manifest, staged: Staged) -> None:
    lost = StoredFile(path="lost.json", size=1, sha256="0" * 64)
    for at in (Version(str(NAME), 1, "sha256:" + "0" * 64, NOW), Version(str(NAME), 7, "sha256:" + "1" * 64, NOW)):
        assert backend.manifest(at) is None
        assert backend.blob(at, lost) is None
        assert backend.blob(at, lost.model_copy(update={"size": 1 << 30})) is None


def test_a_staged_version_is_seen_by_nobody_until_the_swap(
    backend: Backend, manifest: Manifest, admitted: Admitted, staged: Staged
) -> None:
    assert (backend.head(NAME), backend.names()) == (None, [])
    etag = backend.swap(NAME, first(manifest), None, staged)
    stored = backend.head(NAME)
    assert stored is not None
    assert (stored.data, stored.etag) == (first(manifest).encode(), etag)
    assert backend.names() == [str(NAME)]
    for settled in (False, True):
        assert backend.manifest(version(manifest)) == manifest.encode()
        for file in manifest.files:
            assert b"".join(backend.blob(version(manifest), file) or ()) == (admitted.folder / file.path).read_bytes()
        if not settled:
            backend.settle(NAME, first(manifest))
            backend.settle(NAME, first(manifest))


def test_swap_creates_once_and_replaces_only_what_is_expected(
    backend: Backend, manifest: Manifest, staged: Staged
) -> None:
    with pytest.raises(Conflict):
        backend.swap(NAME, first(manifest), "0" * 40)
    created = backend.swap(NAME, first(manifest), None, staged)
    with pytest.raises(Conflict):
        backend.swap(NAME, first(manifest, "other"), None, staged)
    moved = first(manifest).tag("prod", 1, NOW)
    second = backend.swap(NAME, moved, created)
    assert second != created
    with pytest.raises(Conflict):
        backend.swap(NAME, first(manifest).tag("test", 1, NOW), created)
    stored = backend.head(NAME)
    assert stored is not None
    assert (stored.data, stored.etag) == (moved.encode(), second)


def test_a_race_has_one_winner(backend: Backend, manifest: Manifest, staged: Staged) -> None:
    threads = 6
    barrier = threading.Barrier(threads)

    def attempt(head: Head, expected: str | None, staged: Staged | None) -> str | None:
        barrier.wait()
        try:
            return backend.swap(NAME, head, expected, staged)
        except Conflict:
            return None

    def race(heads: list[Head], expected: str | None, staged: Staged | None = None) -> tuple[Head, str]:
        etags = list(pool.map(attempt, heads, [expected] * threads, [staged] * threads))
        (winner,) = [number for number, etag in enumerate(etags) if etag]
        stored = backend.head(NAME)
        assert stored is not None
        assert (stored.data, stored.etag) == (heads[winner].encode(), etags[winner])
        return heads[winner], stored.etag

    with ThreadPoolExecutor(threads) as pool:
        head, etag = race([first(manifest, f"nonce-{number}") for number in range(threads)], None, staged)
        for turn in range(3):
            head, etag = race([head.tag(f"a-{turn}-{number}", 1, NOW) for number in range(threads)], etag)


@pytest.mark.parametrize("url", ["local", "s3", "other-s3", "hub"], indirect=True)
def test_no_alias_is_lost(url: str, folder: Path, base: Fingerprint) -> None:
    registry = Registry(url)
    registry.push(folder, str(NAME), base=base)

    def move(thread: int) -> None:
        for turn in range(3):
            registry.tag(str(NAME), f"alias-{thread}-{turn}", "1", expect=0)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(move, thread) for thread in range(4)]:
            done.result()
    assert len(registry.show(str(NAME)).history) == 12


def test_of_two_who_expect_the_same_of_an_alias_one_moves_it(url: str, folder: Path, base: Fingerprint) -> None:
    registry = Registry(url)
    registry.push(folder, str(NAME), base=base, alias="prod")
    registry.push(folder, str(NAME), base=base)
    barrier = threading.Barrier(4)

    def move(_: int) -> Any:
        barrier.wait()
        try:
            return registry.tag(str(NAME), "prod", "2", expect=1)
        except Conflict as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(move, range(4)))
    assert len([result for result in results if isinstance(result, Version)]) == 1
    assert all("points to version 2, not 1" in result for result in results if isinstance(result, str))


def test_a_backend_can_be_pickled_and_opened_by_its_url(backend: Backend, manifest: Manifest, staged: Staged) -> None:
    etag = backend.swap(NAME, first(manifest), None, staged)
    for copy in (pickle.loads(pickle.dumps(backend)), open_backend(backend.url)):
        assert copy.url == backend.url
        assert copy.head(NAME).etag == etag


@pytest.mark.parametrize("url", ["", "registry", "file:///", "s3://", "gs://b/x", "http://hub/acme"])
def test_an_url_of_no_known_kind_is_refused(url: str) -> None:
    with pytest.raises(InvalidName, match=r"Write file:///FOLDER"):
        Registry(url)


def test_wrong_options_of_a_store_are_named() -> None:
    with pytest.raises(InvalidName, match=r"encryption is 'x', and none of AES256"):
        Registry("s3://bucket/prefix?encryption=x")


@pytest.mark.parametrize("url", ["s3://AKIA:secret@bucket/x", "hf://secret@acme", "https://me:secret@host/x"])
def test_credentials_in_an_url_are_not_repeated(url: str) -> None:
    with pytest.raises(InvalidName, match=r"holds no credentials") as caught:
        Registry(url)
    assert "secret" not in str(caught.value)
