"""Recalls that reach running servers: a feed of notices in the store, and what each server did about them.

    recalls/feed.json       the last notices, in order: which version was recalled or deleted, and why
    recalls/servers/ID.json one engine replica's word: how far it has followed, and what it had of which version

Heads decide: the feed is written after the head, and only makes it known sooner. Servers look at the heads of what
they hold, too, so a notice that was never written delays a recall and loses nothing. On a Hub, where each write is a
commit, there are heads only, and nobody's word.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from swapmeet_registry.backend import Backend
from swapmeet_registry.errors import Conflict, Corrupt, Refused, RegistryError, StoreError
from swapmeet_registry.life import now
from swapmeet_registry.recall_documents import Feed, Notice, ServerWord
from swapmeet_registry.store_backend import StoreBackend
from swapmeet_registry.stores import Store
from swapmeet_registry.version import Version

FEED, SERVERS = "recalls/feed.json", "recalls/servers/"
KEPT = 100
"""Notices in the feed, which every server reads every second. Whoever missed more looks at its heads."""
LONGEST_REASON = 1000
"""Characters of a reason in a notice; the head has all of it."""
ALIVE = 90.0
"""Seconds after its last word that a server counts as running."""
REMEMBERED = 30 * 24 * 3600.0
"""Seconds that the word of a server that ended is kept."""
ATTEMPTS = 100

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class News:
    """Notices after the one asked for; `missed` where there were more than the feed keeps."""

    notices: tuple[Notice, ...]
    missed: bool


@dataclass(frozen=True, slots=True)
class Reached:
    """Whether a server obeys a recall, and what that took.

    Attributes:
        server: its id.
        host: the machine it runs on.
        alive: whether it gave its word lately.
        at: when it obeyed; None where it has not, as far as it said.
        held: whether it had the version in memory or on disk.
        ended: how many requests under way it ended.
        tenants: who had used the version on this server.
    """

    server: str
    host: str
    alive: bool
    at: str | None
    held: bool = False
    ended: int = 0
    tenants: tuple[str, ...] = ()


class Recalls:
    """The feed and the servers' words in a registry's store."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @property
    def kept(self) -> bool:
        """Whether there is a feed here at all; on a Hub there is none."""
        return isinstance(self._backend, StoreBackend)

    def tell(self, version: Version) -> None:
        """Announce that a version was recalled or deleted, which its head says already.

        Where that fails, servers find out by the head.
        """
        if not self.kept:
            return
        how: Literal["recalled", "deleted"] = "recalled" if version.deleted is None else "deleted"
        reason = (version.deleted or version.recalled or "")[:LONGEST_REASON]
        try:
            self._append(version, how, reason)
        except RegistryError as error:
            _log.warning(f"{version} is {how}, but servers will take about a minute longer to notice: {error}")

    def after(self, number: int) -> News:
        """The notices that came after the one with this number.

        Raises:
            Corrupt: the feed was changed by somebody else.
            StoreError: it can not be read.
        """
        feed = self._read()[0] if self.kept else Feed()
        if feed.last < number:  # somebody deleted it, and it began anew
            return News(feed.notices, missed=True)
        new = tuple(notice for notice in feed.notices if notice.number > number)
        return News(new, missed=bool(new) and new[0].number > number + 1)

    def say(self, word: ServerWord, etag: str | None = None) -> str:
        """Put down a server's word, over its last one.

        Args:
            word: of the server that calls.
            etag: what the last call gave.

        Returns:
            What the next call needs.
        """
        key = f"{SERVERS}{word.server}.json"
        try:
            return self._store.swap(key, word.encode(), etag)
        except Conflict:  # an answer that was lost: nobody else writes here
            stored = self._store.get(key)
            return self._store.swap(key, word.encode(), stored.etag if stored else None)

    def sweep(self) -> None:
        """Remove the words of servers that ended long ago."""
        for entry in list(self._store.scan(SERVERS)):
            if time.time() - entry.written_at > REMEMBERED:
                self._store.delete(entry.key)

    def reach(self, version: Version) -> tuple[Reached, ...]:
        """Which servers a recall reached: all that run, and those that obeyed it before they ended."""
        if not self.kept:
            return ()
        notices = [notice.number for notice in self._read()[0].notices if notice.digest == version.digest]
        found = (_reached(word, alive, version.digest, max(notices, default=0)) for word, alive in self._words())
        return tuple(each for each in found if each.alive or each.at is not None)

    @property
    def _store(self) -> Store:
        assert isinstance(self._backend, StoreBackend)
        return self._backend.store

    def _read(self) -> tuple[Feed, str | None]:
        stored = self._store.get(FEED)
        if stored is None:
            return Feed(), None
        try:
            return Feed.decode(stored.data, f"{FEED} in {self._store.url}"), stored.etag
        except Refused as error:
            raise Corrupt(f"{error} Delete it: heads have all that it said.") from error

    def _append(self, version: Version, how: Literal["recalled", "deleted"], reason: str) -> None:
        for _ in range(ATTEMPTS):
            feed, etag = self._read()
            notice = Notice(
                number=feed.last + 1, name=version.name, version=version.version, digest=version.digest,
                how=how, reason=reason, at=now(),
            )  # fmt: skip
            with suppress(Conflict):
                self._store.swap(FEED, Feed(notices=(*feed.notices, notice)[-KEPT:]).encode(), etag)
                return
        raise Conflict(f"{FEED} in {self._store.url} is being written by many others at once.")

    def _words(self) -> Iterator[tuple[ServerWord, bool]]:
        for entry in self._store.scan(SERVERS):
            stored = self._store.get(entry.key)
            if stored is None:
                continue
            try:
                word = ServerWord.decode(stored.data, f"{entry.key} in {self._store.url}")
            except Refused as error:
                raise StoreError(f"{error} Delete it: a server that runs writes it again.") from error
            yield word, time.time() - entry.written_at <= ALIVE


def _reached(word: ServerWord, alive: bool, digest: str, number: int) -> Reached:
    done = next((each for each in reversed(word.obeyed) if each.digest == digest), None)
    if done is None:  # it may have started later, or forgotten by now what it did
        return Reached(word.server, word.host, alive, word.since if number and word.notice >= number else None)
    return Reached(word.server, word.host, alive, done.at, done.held, done.ended, done.tenants)
