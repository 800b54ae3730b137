"""Recalls that reach running servers: a feed of notices in the store, and what each server did about them.

    recalls/feed.json       the last recalls and the last deletions, in order: of which version, and why
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
"""Recalls in the feed, which every server reads every second, and as many deletions: jobs delete checkpoints by the
dozen, and push no recall out of it. Whoever missed more looks at the heads of all that it has."""
LONGEST_REASON = 1000
"""Characters of a reason in a notice; the head has all of it."""
ALIVE = 90.0
"""Seconds after its last word that a server counts as running."""
REMEMBERED = 30 * 24 * 3600.0
"""Seconds that the word of a server that ended is kept."""
ATTEMPTS = 100

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """How far a feed was followed: which one, and the number of the last notice that was read."""

    feed: str = ""
    notice: int = 0


START = Place()
"""Before the first notice."""


@dataclass(frozen=True, slots=True)
class News:
    """Notices after a place; `missed` where there may be more than the feed has.

    Attributes:
        notices: in order.
        missed: more were told than the feed keeps, or it is another feed: somebody deleted the one that was followed.
        place: where it ends.
    """

    notices: tuple[Notice, ...]
    missed: bool
    place: Place


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

    def after(self, place: Place = START) -> News:
        """The notices that came after a place; from the beginning, all that the feed has.

        Raises:
            Corrupt: the feed was changed by somebody else.
            StoreError: it can not be read.
        """
        feed = self._read()[0] if self.kept else Feed()
        end = Place(feed.id, feed.last)
        if place.notice and (feed.id != place.feed or feed.last < place.notice):
            return News(feed.notices, missed=True, place=end)
        new = tuple(notice for notice in feed.notices if notice.number > place.notice)
        return News(new, missed=feed.forgotten > place.notice, place=end)

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
        feed = self._read()[0]
        notices = [notice.number for notice in feed.notices if notice.digest == version.digest]
        told = Place(feed.id, max(notices, default=0))
        found = (_reached(word, alive, version.digest, told) for word, alive in self._words())
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
                self._store.swap(FEED, feed.grown(notice, KEPT).encode(), etag)
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


def _reached(word: ServerWord, alive: bool, digest: str, told: Place) -> Reached:
    done = next((each for each in reversed(word.obeyed) if each.digest == digest), None)
    if done is None:  # it may have started later, or forgotten by now what it did
        followed = told.notice and word.feed == told.feed and word.notice >= told.notice
        return Reached(word.server, word.host, alive, word.since if followed else None)
    return Reached(word.server, word.host, alive, done.at, done.held, done.ended, done.tenants)
