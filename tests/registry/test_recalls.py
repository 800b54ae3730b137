"""The feed of recalls and the servers' words, on every store: no notice is lost, and whom it reached is true."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from swapmeet_registry import Corrupt, Fingerprint, Recalled, Registry, StoreError, Version, fault, open_store, recalls
from swapmeet_registry.life import now
from swapmeet_registry.recall_documents import Obeyed, ServerWord
from swapmeet_registry.recalls import FEED, KEPT, SERVERS, News, Place, Recalls

NAME = "acme/legal"


@pytest.fixture
def registry(store_url: str) -> Registry:
    return Registry(store_url)


@pytest.fixture
def publish(
    registry: Registry, make_adapter: Callable[..., Path], tmp_path: Path, base: Fingerprint
) -> Callable[[], Version]:
    folder = make_adapter(tmp_path / "adapter")
    return lambda: registry.push(folder, NAME, base=base)


def word(server: str, notice: int = 0, *obeyed: Obeyed) -> ServerWord:
    return ServerWord(
        server=server, host="here", process=os.getpid(), base="tiny", since=now(), notice=notice, obeyed=obeyed
    )


def told(found: Recalls, after: int = 0) -> list[tuple[int, int, str]]:
    """What the feed says after a number."""
    place = Place(found.after().place.feed, after)
    return [(notice.number, notice.version, notice.how) for notice in found.after(place).notices]


def test_withdrawals_are_told_in_order(registry: Registry, publish: Callable[[], Version]) -> None:
    first, second, third = (publish() for _ in range(3))
    assert told(registry.recalls) == []
    registry.yank(f"{NAME}:3", "old")
    registry.recall(f"{NAME}:2", "leaks")
    registry.delete(str(first), "gone")
    assert told(registry.recalls) == [(1, 2, "recalled"), (2, 1, "deleted")]
    assert told(registry.recalls, 1) == [(2, 1, "deleted")]
    assert told(registry.recalls, 2) == []
    ends = registry.recalls.after().place
    assert registry.recalls.after(ends) == News((), missed=False, place=ends)
    for other in (Place(ends.feed, 7), Place("another", 1), Place("another", 2), Place("", 1)):
        news = registry.recalls.after(other)
        assert (len(news.notices), news.missed, news.place) == (2, True, ends), "the feed began anew"
    assert str(registry.recalls.after().notices[0].error()) == str(refusal(registry, second))
    assert third.digest not in [notice.digest for notice in registry.recalls.after().notices]


def refusal(registry: Registry, version: Version) -> Exception:
    with pytest.raises(Recalled) as caught:
        registry.resolve(version.pinned)
    return caught.value


def test_of_many_who_recall_at_once_none_is_lost(registry: Registry, publish: Callable[[], Version]) -> None:
    versions = [publish() for _ in range(6)]
    with ThreadPoolExecutor(len(versions)) as pool:
        list(pool.map(lambda each: registry.recall(str(each), f"reason {each.version}"), versions))
    found = registry.recalls.after().notices
    assert [notice.number for notice in found] == [1, 2, 3, 4, 5, 6]
    assert {(notice.version, notice.reason) for notice in found} == {(n, f"reason {n}") for n in range(1, 7)}


def test_whoever_missed_some_is_told_so(
    registry: Registry, publish: Callable[[], Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recalls, "KEPT", 2)
    assert KEPT > 2
    for version in [publish() for _ in range(4)]:
        registry.recall(str(version), "leaks")
    feed = registry.recalls.after().place.feed
    assert [(each, registry.recalls.after(Place(feed, each)).missed) for each in range(5)] == [
        (0, True), (1, True), (2, False), (3, False), (4, False),
    ]  # fmt: skip


def test_recalls_and_deletions_do_not_push_each_other_out(
    registry: Registry, publish: Callable[[], Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs delete checkpoints all the time, and whoever recalls asks long after whom that reached."""
    monkeypatch.setattr(recalls, "KEPT", 2)
    first, *others = (publish() for _ in range(7))
    registry.recall(str(first), "leaks")
    place = registry.recalls.after().place
    registry.recalls.say(word("quick").model_copy(update={"feed": place.feed, "notice": place.notice}))
    for version in others[:4]:
        registry.delete(str(version), "a newer one took its place")
    assert told(registry.recalls) == [(1, 1, "recalled"), (4, 4, "deleted"), (5, 5, "deleted")]
    assert registry.recalls.after(place).missed, "deletions are to be obeyed as well"
    assert [each.at is not None for each in registry.recalls.reach(first)] == [True]
    registry.recall(str(others[4]), "leaks")
    assert told(registry.recalls) == [(1, 1, "recalled"), (4, 4, "deleted"), (5, 5, "deleted"), (6, 6, "recalled")]
    registry.recall(str(others[5]), "leaks")
    assert [number for number, *_ in told(registry.recalls)] == [4, 5, 6, 7]
    assert [registry.recalls.after(Place(place.feed, each)).missed for each in range(5)] == [True] * 3 + [False] * 2


def test_another_feed_in_the_place_of_a_deleted_one_is_told_from_it(
    registry: Registry, store_url: str, publish: Callable[[], Version]
) -> None:
    """Also where it has as many notices, and servers followed the old one farther than the new one goes."""
    versions = [publish() for _ in range(4)]
    registry.recall(str(versions[0]), "leaks")
    followed = registry.recalls.after().place
    registry.recalls.say(word("old").model_copy(update={"feed": followed.feed, "notice": 100}))
    store = open_store(store_url)
    store.delete(FEED)
    gone = registry.recalls.after(followed)
    assert (gone.notices, gone.missed) == ((), True)
    assert not registry.recalls.after(gone.place).missed, "it was told once"
    for version in versions[1:]:
        registry.recall(str(version), "leaks")
    news = registry.recalls.after(followed)
    assert ([notice.number for notice in news.notices], news.missed) == ([1, 2, 3], True)
    assert [notice.number for notice in registry.recalls.after(gone.place).notices] == [1, 2, 3]
    assert [each.at for each in registry.recalls.reach(versions[1])] == [None], "it followed another feed"


def test_killed_before_the_feed_the_head_says_it(
    registry: Registry, publish: Callable[[], Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = publish()

    def stop(step: str) -> None:
        if step == "recall.head":
            raise StoreError("killed")

    monkeypatch.setattr(fault, "hook", stop)
    with pytest.raises(StoreError, match="killed"):
        registry.recall(str(version), "leaks")
    monkeypatch.undo()
    assert "leaks" in str(refusal(registry, version))
    assert told(registry.recalls) == []
    registry.recall(str(version), "leaks")
    assert told(registry.recalls) == [(1, 1, "recalled")], "whoever does it again tells it"


def test_a_damaged_feed_stops_no_recall(
    registry: Registry, store_url: str, publish: Callable[[], Version], caplog: pytest.LogCaptureFixture
) -> None:
    version = publish()
    store = open_store(store_url)
    store.swap(FEED, b"{}", None)
    registry.recall(str(version), "leaks")
    assert "will take about a minute longer" in caplog.text
    assert "leaks" in str(refusal(registry, version))
    with pytest.raises(Corrupt, match="heads have all that it said"):
        registry.recalls.after()
    store.delete(FEED)
    assert told(registry.recalls) == []


def test_whom_a_recall_reached(
    registry: Registry, store_url: str, publish: Callable[[], Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    version, other = publish(), publish()
    found = Registry(store_url).recalls
    assert found.reach(version) == ()
    etags = {server: found.say(word(server)) for server in ("slow", "quick", "gone")}
    registry.recall(str(version), "leaks")
    feed = found.after().place.feed
    obeyed = Obeyed(digest=version.digest, at=now(), held=True, ended=3, tenants=("acme", "zeta"))
    quick, late = (each.model_copy(update={"feed": feed}) for each in (word("quick", 1, obeyed), word("late", 1)))
    etags["quick"] = found.say(quick, etags["quick"])
    found.say(quick, "an etag of an answer that was lost")
    found.say(late)
    reached = {each.server: each for each in found.reach(version)}
    assert sorted(reached) == ["gone", "late", "quick", "slow"]
    assert (reached["quick"].held, reached["quick"].ended, reached["quick"].tenants) == (True, 3, ("acme", "zeta"))
    assert (reached["slow"].at, reached["gone"].at, reached["late"].held) == (None, None, False)
    assert reached["late"].at is not None, "it follows the feed, and had nothing of it"
    assert all(each.at is None for each in found.reach(other))

    later = time.time() + recalls.ALIVE + 5
    monkeypatch.setattr(time, "time", lambda: later)
    assert [(each.server, each.alive) for each in found.reach(version)] == [("late", False), ("quick", False)]
    later += recalls.REMEMBERED
    found.sweep()
    assert list(open_store(store_url).list(SERVERS)) == []
