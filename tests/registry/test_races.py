"""Rounds of races on every store: never two winners, and nothing is lost.

SWAPMEET_RACE_ROUNDS says how many there are of each kind; 10,000 take an hour or two on a server.
"""

import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from swapmeet_registry import AdapterName, Conflict, Fingerprint, Registry, Store, open_store
from swapmeet_registry.admission.admit import admit
from swapmeet_registry.backend import open_backend
from swapmeet_registry.head import Head
from swapmeet_registry.publishing import manifest_of
from swapmeet_registry.stores import Stored

ROUNDS = int(os.environ.get("SWAPMEET_RACE_ROUNDS", "8"))
THREADS = 4
NOW = "2026-01-01T00:00:00.000000Z"
Result = TypeVar("Result")


def at_once(calls: list[Callable[[], Result]], pool: ThreadPoolExecutor) -> list[Result]:
    start = threading.Barrier(len(calls))

    def begin(call: Callable[[], Result]) -> Result:
        start.wait()
        return call()

    return list(pool.map(begin, calls))


@pytest.fixture
def store(store_url: str) -> Store:
    return open_store(store_url)


def test_of_creators_one_wins(store: Store) -> None:
    def create(key: str, data: bytes) -> Stored | None:
        try:
            return Stored(data, store.swap(key, data, None))
        except Conflict:
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        for turn in range(ROUNDS):
            creators = [partial(create, f"raced/{turn}", b"%d %d" % (turn, each)) for each in range(THREADS)]
            (won,) = [found for found in at_once(creators, pool) if found]
            assert store.get(f"raced/{turn}") == won
    assert len(list(store.list("raced/"))) == ROUNDS


def test_of_those_who_move_an_alias_one_wins(
    store: Store, make_adapter: Callable[..., Path], tmp_path: Path, base: Fingerprint
) -> None:
    """Everybody expects the alias where the last round left it."""
    registry = Registry(store)
    for seed in range(THREADS):
        registry.push(make_adapter(tmp_path / f"adapter-{seed}", seed), "acme/legal", base=base)
    at = registry.tag("acme/legal", "prod", "acme/legal:1").version

    def move(to: int, expected: int) -> int | None:
        try:
            return registry.tag("acme/legal", "prod", f"acme/legal:{to}", expect=expected).version
        except Conflict:
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(ROUNDS):
            others = [number for number in range(1, THREADS + 1) if number != at]
            winners = [won for won in at_once([partial(move, to, at) for to in others], pool) if won]
            assert len(winners) == 1, f"{winners} were all told that they moved the alias from {at}"
            (at,) = winners
            assert registry.resolve("acme/legal:prod").version == at


def test_of_those_who_publish_the_same_version_one_wins(
    store_url: str, make_adapter: Callable[..., Path], tmp_path: Path, base: Fingerprint
) -> None:
    """The first version of a name, in each round of another; who was told that it is his finds it in the head."""
    backend = open_backend(store_url)
    with admit(make_adapter(tmp_path / "adapter"), base) as admitted:
        made = manifest_of(admitted, AdapterName("acme", "legal"), base, {})
        folder = Path(shutil.copytree(admitted.folder, tmp_path / "canonical"))

    def publish(name: AdapterName, nonce: str) -> Stored | None:
        manifest = made.model_copy(update={"adapter": str(name)})
        head = Head(adapter=str(name)).publish(manifest.digest, NOW, nonce)
        with backend.stage(name, manifest, folder) as staged:
            try:
                return Stored(head.encode(), backend.swap(name, head, None, staged))
            except Conflict:
                return None

    with ThreadPoolExecutor(THREADS) as pool:
        for turn in range(ROUNDS):
            name = AdapterName("acme", f"legal-{turn}")
            publishers = [partial(publish, name, str(each)) for each in range(THREADS)]
            (won,) = [found for found in at_once(publishers, pool) if found]
            assert backend.head(name) == won
    registry = Registry(store_url)
    assert len(registry.names()) == ROUNDS
    assert registry.verify(f"acme/legal-{ROUNDS - 1}:1").version == 1
