"""Rounds of races on every store, and on a Hub: never two winners, and nothing is lost.

SWAPMEET_RACE_ROUNDS says how many there are of each kind, of which TEAMS play at the same time. 10,000 of each take
a quarter of an hour in a folder, and one to three hours on an S3 server written in Python.
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
"""Of one round."""
TEAMS = 4
"""Rounds at the same time, each about something of its own: servers and disks are waited for together."""
MOVES = 100
"""Of one alias: heads have the history of all moves, and reading it takes as long as it is."""
NOW = "2026-01-01T00:00:00.000000Z"
Result = TypeVar("Result")
everywhere = pytest.mark.parametrize("store_url", ["local", "s3", "other-s3", "hub"], indirect=True)
pytestmark = pytest.mark.timeout(300 + 5 * ROUNDS)


class AtOnce:
    """Calls functions at the same moment, and gives what each gives."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    def __call__(self, calls: list[Callable[[], Result]]) -> list[Result]:
        start = threading.Barrier(len(calls))

        def begin(call: Callable[[], Result]) -> Result:
            start.wait()
            return call()

        return list(self._pool.map(begin, calls))


def play(team: Callable[[AtOnce, int, range], None]) -> None:
    """Have teams share the rounds: `team(at_once, number, turns)`."""

    def begin(number: int) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            team(AtOnce(pool), number, range(number, ROUNDS, TEAMS))

    with ThreadPoolExecutor(TEAMS) as teams:
        for _ in teams.map(begin, range(TEAMS)):
            pass


@pytest.fixture
def store(store_url: str) -> Store:
    return open_store(store_url)


def test_of_creators_one_wins(store: Store) -> None:
    def create(key: str, data: bytes) -> Stored | None:
        try:
            return Stored(data, store.swap(key, data, None))
        except Conflict:
            return None

    def team(at_once: AtOnce, _: int, turns: range) -> None:
        for turn in turns:
            creators = [partial(create, f"raced/{turn}", b"%d %d" % (turn, each)) for each in range(THREADS)]
            (won,) = [found for found in at_once(creators) if found]
            assert store.get(f"raced/{turn}") == won

    play(team)
    assert len(list(store.list("raced/"))) == ROUNDS


@everywhere
def test_of_those_who_move_an_alias_one_wins(
    store_url: str, make_adapter: Callable[..., Path], tmp_path: Path, base: Fingerprint
) -> None:
    """Everybody expects the alias where the last round left it; each team has names of its own, one after the other."""
    registry = Registry(store_url)
    folders = [make_adapter(tmp_path / f"adapter-{seed}", seed) for seed in range(THREADS)]

    def move(name: str, to: int, expected: int) -> int | None:
        try:
            return registry.tag(name, "prod", f"{name}:{to}", expect=expected).version
        except Conflict:
            return None

    def race(at_once: AtOnce, name: str, rounds: int) -> None:
        for folder in folders:
            registry.push(folder, name, base=base)
        at = registry.tag(name, "prod", f"{name}:1").version
        for _ in range(rounds):
            others = [to for to in range(1, THREADS + 1) if to != at]
            winners = [won for won in at_once([partial(move, name, to, at) for to in others]) if won]
            assert len(winners) == 1, f"{winners} were all told that they moved the alias from {at}"
            (at,) = winners
            assert registry.resolve(f"{name}:prod").version == at
        assert len(registry.show(name).history) == 1 + rounds

    def team(at_once: AtOnce, number: int, turns: range) -> None:
        for first in range(0, len(turns), MOVES):
            race(at_once, f"acme/legal-{number}-{first}", len(turns[first : first + MOVES]))

    play(team)


@everywhere
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

    def team(at_once: AtOnce, _: int, turns: range) -> None:
        for turn in turns:
            name = AdapterName("acme", f"legal-{turn}")
            publishers = [partial(publish, name, str(each)) for each in range(THREADS)]
            (won,) = [found for found in at_once(publishers) if found]
            assert backend.head(name) == won

    play(team)
    registry = Registry(store_url)
    assert len(registry.names()) == ROUNDS
    assert registry.verify(f"acme/legal-{ROUNDS - 1}:1").version == 1
