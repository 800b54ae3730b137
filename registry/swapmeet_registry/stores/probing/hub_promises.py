"""What the registry asks of a Hub, tried in a private repository that is deleted afterwards."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

from huggingface_hub import HfApi

from swapmeet_registry.backend import LargeFile
from swapmeet_registry.errors import Conflict, StoreError
from swapmeet_registry.stores.hub import HubBackend
from swapmeet_registry.stores.hub_errors import endpoint, hub_errors
from swapmeet_registry.stores.hub_files import BRANCH
from swapmeet_registry.stores.hub_repository import HubRepository
from swapmeet_registry.stores.probing.promises import Broken, Promises, at_once, require
from swapmeet_registry.stores.protocol import Stored

ROUNDS = 5
"""Races at most: a Hub counts the commits of an hour."""
THREADS = 4
LARGE = 1 << 20
PATH = "probe.txt"


@contextmanager
def hub_promises(url: str, rounds: int, threads: int) -> Iterator[Promises]:
    """The promises of a Hub.

    Raises:
        StoreError: no repository can be made there, or deleted.
    """
    name = f"{HubBackend.open(url).organization}/swapmeet-probe-{uuid4().hex[:12]}"
    repository = HubRepository(name)
    repository.create("private")
    try:
        tried = _HubPromises(repository, min(rounds, ROUNDS), min(threads, THREADS))
        yield Promises(
            alone=(
                ("commit on its parent only", tried.on_parent),
                ("read after commit", tried.read_after_commit),
                ("tags", tried.tags),
                ("large file", tried.large_file),
            ),
            races=(("commit race", tried.race),),
        )
    finally:
        with hub_errors(name):
            HfApi(endpoint=endpoint()).delete_repo(name, missing_ok=True)


@dataclass(frozen=True)
class _HubPromises:
    repository: HubRepository
    rounds: int
    threads: int

    def on_parent(self) -> None:
        parent = self._tip()
        self._commit(b"1", parent)
        try:
            self._commit(b"other", parent)
        except Conflict:
            return
        raise Broken("A commit was taken although its parent is not the newest one: parents are not honoured.")

    def read_after_commit(self) -> None:
        for turn in range(self.rounds):
            data = b"read %d" % turn
            commit = self._commit(data, self._tip())
            seen = f"Commit {turn} was not read right after it."
            require(self.repository.get(BRANCH, PATH) == Stored(data, commit), seen)
            require(self._tip() == commit, seen)

    def tags(self) -> None:
        commit = self._tip()
        self.repository.tag("v1", commit)
        self._commit(b"after the tag", commit)
        require(self.repository.refs()[1] == {"v1": commit}, "A tag does not stay at its commit.")

    def large_file(self) -> None:
        data = os.urandom(LARGE)
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "large.safetensors"
            source.write_bytes(data)
            files = {source.name: LargeFile(source, hashlib.sha256(data).hexdigest())}
            self.repository.upload(files)
            commit = self.repository.commit(files, (), self._tip(), "Large")
        found = b"".join(self.repository.pieces(commit, source.name))
        require(found == data, "A large file came back as other bytes.")

    def race(self) -> None:
        for turn in range(self.rounds):
            attempts = [partial(self._attempt, b"%d %d" % (turn, each), self._tip()) for each in range(self.threads)]
            winners = [won for won in at_once(attempts) if won is not None]
            require(len(winners) == 1, f"Of {self.threads} commits on one parent {len(winners)} were taken.")
            require(self.repository.get(BRANCH, PATH) == winners[0], "What is read is not what the winner wrote.")

    def _attempt(self, data: bytes, parent: str) -> Stored | None:
        try:
            return Stored(data, self._commit(data, parent))
        except Conflict:
            return None

    def _tip(self) -> str:
        tip = self.repository.refs()[0]
        if tip is None:
            raise StoreError(f"The repository {self.repository.name} has no branch {BRANCH}.")
        return tip

    def _commit(self, data: bytes, parent: str) -> str:
        return self.repository.commit({PATH: data}, (), parent, "Probe")
