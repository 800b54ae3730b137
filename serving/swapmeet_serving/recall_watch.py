"""Has a replica obey recalls: within a second or two by the registry's feed, and else by the heads of what it holds.

Heads are read in turn, some at each look. Where the feed has not all that was told since the last look, because it
keeps no more, or somebody deleted it, those of all that is held are read at once, and again until each was read. Until
then nobody is told that this server has followed the feed.
"""

import logging
import os
import platform
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

from swapmeet_registry import AdapterName, NotFound, Recalled, Reference, Registry, RegistryError
from swapmeet_registry.life import now
from swapmeet_registry.recall_documents import Obeyed, ServerWord
from swapmeet_registry.recalls import ALIVE, START, Place

LOOK_SECONDS = 1.0
"""Between two looks at the feed."""
HEAD_SECONDS = 30.0
"""Within which the head of each adapter that is held is read anew, unless very many are held."""
HUB_HEAD_SECONDS = 5.0
"""The same where there is no feed. Hubs count requests, so it is not less."""
HEADS_A_LOOK = 4
WORD_SECONDS = ALIVE / 3
"""Between two words of a server that nothing happens to."""
REMEMBERED = 100
"""Recalls of which a server says what it did."""
MOST_USED, MOST_USERS = 10_000, 1000

log = logging.getLogger("swapmeet.serving")


@dataclass(frozen=True, slots=True)
class Done:
    """What dropping an adapter took: whether it was held at all, and how many requests it ended."""

    held: bool
    ended: int


class Users:
    """Which tenants used which adapter since the process began; of very many, those used last. For any thread."""

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, set[str]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, adapters: Iterable[str], tenant: str) -> None:
        """A tenant's request needs these adapters."""
        with self._lock:
            for adapter in adapters:
                tenants = self._tenants.setdefault(adapter, set())
                self._tenants.move_to_end(adapter)
                if tenant and len(tenants) < MOST_USERS:
                    tenants.add(tenant)
                if len(self._tenants) > MOST_USED:
                    self._tenants.popitem(last=False)

    def of(self, adapter: str) -> tuple[str, ...]:
        """The tenants that used an adapter."""
        with self._lock:
            return tuple(sorted(self._tenants.get(adapter, ())))


class RecallWatch:
    """Looks for recalls on a thread of its own, until the engine is dead.

    Args:
        registry: where adapters come from.
        base: the name of the base that is served.
        server: the replica's id.
        held: the identities of the adapters in memory, `TENANT/NAME@sha256:HEX`.
        obey: drops an adapter and has its requests end with the error; returns when that is done.
        users: who used what.
        dead: whether nobody can obey any more.
        every: seconds between two looks.
    """

    def __init__(
        self,
        registry: Registry,
        base: str,
        server: str,
        held: Callable[[], Iterable[str]],
        obey: Callable[[str, RegistryError], Done],
        users: Users,
        dead: Callable[[], bool],
        every: float = LOOK_SECONDS,
    ) -> None:
        self._registry, self._held, self._obey, self._users = registry, held, obey, users
        self._dead, self._every = dead, every
        self._base, self._server = base, server if server.isalnum() else uuid4().hex
        self._since = now()
        self._place = START  # how far the feed was read
        self._followed = START  # how far it was obeyed: what this server says
        self._obeyed: deque[Obeyed] = deque(maxlen=REMEMBERED)
        self._looked: dict[str, float] = {}  # at the heads of these names, when
        self._doubtful: set[str] = set()  # names that were held when notices were missed, and not looked at since
        self._word: tuple[ServerWord, float, str] | None = None  # the last, when, and its etag
        self._failing = False
        threading.Thread(target=self._work, name="recalls", daemon=True).start()

    def _work(self) -> None:
        while not self._dead():
            try:
                self.look()
                self._failing = False
            except Exception as error:  # whatever it is: recalls must not stop at it
                if not self._failing:
                    log.warning("recalls are not seen until this is mended (%s: %s)", type(error).__name__, error)
                self._failing = True
            time.sleep(self._every)

    def look(self) -> None:
        """Obey what is new, read some heads, and say what was done. What fails is tried again, and stops no other."""
        failures: list[Exception] = []
        with _noting(failures):
            self._follow(failures)
        with _noting(failures):
            self._look_at_heads(failures)
        if not self._doubtful:
            self._followed = self._place
        with _noting(failures):
            self._say()
        if failures:
            raise failures[0]

    def _follow(self, failures: list[Exception]) -> None:
        """Obey the feed."""
        news = self._registry.recalls.after(self._place)
        if news.missed:
            self._doubtful |= {_name(adapter) for adapter in self._held()}
        stuck: list[int] = []
        for notice in news.notices:
            try:
                self._drop(notice.pinned, notice.error())
            except Exception as error:
                failures.append(error)
                stuck.append(notice.number)
        self._place = Place(news.place.feed, stuck[0] - 1) if stuck else news.place

    def _look_at_heads(self, failures: list[Exception]) -> None:
        held: dict[str, list[str]] = {}
        for adapter in self._held():
            held.setdefault(_name(adapter), []).append(adapter)
        self._looked = {name: at for name, at in self._looked.items() if name in held}
        self._doubtful &= held.keys()
        pace = HEAD_SECONDS if self._registry.recalls.kept else HUB_HEAD_SECONDS
        due = [name for name in held if time.monotonic() - self._looked.get(name, -pace) >= pace]
        turn = sorted(due, key=lambda name: self._looked.get(name, 0.0))[:HEADS_A_LOOK]
        for name in dict.fromkeys([*sorted(self._doubtful), *turn]):
            self._looked[name] = time.monotonic()  # first of all: one that fails must not keep others from their turn
            with _noting(failures):
                self._look_at_head(name, held[name])
                self._doubtful.discard(name)

    def _look_at_head(self, name: str, adapters: list[str]) -> None:
        head = self._registry.head(name)
        for adapter in adapters:
            digest = adapter.partition("@")[2]
            try:
                head.resolve(Reference(AdapterName.parse(name), digest=digest))
            except (Recalled, NotFound) as error:
                self._drop(adapter, error)

    def _drop(self, adapter: str, error: RegistryError) -> None:
        done = self._obey(adapter, error)
        digest = adapter.partition("@")[2]
        before = next((each for each in self._obeyed if each.digest == digest), None)
        if before is not None and not done.held:
            return  # the same once more
        if done.held:
            log.warning("dropped %s, and ended %d requests: %s", adapter, done.ended, error)
        self._obeyed.append(
            Obeyed(digest=digest, at=now(), held=done.held, ended=done.ended, tenants=self._users.of(adapter))
        )

    def _say(self) -> None:
        """Put down what was done, where there is a place for it, and anything to say."""
        something = self._followed.notice or self._obeyed or any(True for _ in self._held())
        if not self._registry.recalls.kept or not something:
            return
        word = ServerWord(
            server=self._server, host=platform.node(), process=os.getpid(), base=self._base, since=self._since,
            feed=self._followed.feed, notice=self._followed.notice, obeyed=tuple(self._obeyed),
        )  # fmt: skip
        if self._word is None:
            self._registry.recalls.sweep()
        elif self._word[0] == word and time.monotonic() - self._word[1] < WORD_SECONDS:
            return
        etag = self._registry.recalls.say(word, self._word[2] if self._word else None)
        self._word = word, time.monotonic(), etag


@contextmanager
def _noting(failures: list[Exception]) -> Iterator[None]:
    """A block whose failure is noted, and keeps nothing else from being done."""
    try:
        yield
    except Exception as error:
        failures.append(error)


def _name(adapter: str) -> str:
    return adapter.partition("@")[0]
