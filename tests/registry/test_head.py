from typing import Literal

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from swapmeet_registry import AdapterName, Conflict, InvalidName, NotFound, Recalled, Reference
from swapmeet_registry.copies.following import following
from swapmeet_registry.head import KEPT_MOVES, MOST_MOVES, Head, Record
from swapmeet_registry.upkeep.head_mistakes import mistakes

NAME = AdapterName("acme", "legal")
TIME = "2026-01-02T03:04:05.000006Z"
ALIASES = st.sampled_from(["prod", "test", "v2-old"])


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


class HeadMachine(RuleBasedStateMachine):
    """A head against plain dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Head(adapter=str(NAME))
        self.digests: dict[int, str] = {}
        self.yanked: dict[int, str] = {}
        self.gone: set[int] = set()
        self.aliases: dict[str, int] = {}
        self.moves = 0

    @rule()
    def publish(self) -> None:
        number = len(self.digests) + 1
        self.head = self.head.publish(digest(number), TIME, f"nonce-{number}")
        self.digests[number] = digest(number)

    @precondition(lambda self: self.digests)
    @rule(alias=ALIASES, data=st.data(), expect=st.none() | st.integers(0, 4))
    def tag(self, alias: str, data: st.DataObject, expect: int | None) -> None:
        version = data.draw(st.integers(1, len(self.digests) + 1))
        usable = version in self.digests and version not in self.yanked.keys() | self.gone
        expected = expect is None or expect == self.aliases.get(alias, 0)
        try:
            moved = self.head.tag(alias, version, TIME, expect)
        except (NotFound, Recalled):
            assert not usable
        except Conflict:
            assert usable
            assert not expected
        else:
            assert usable
            assert expected
            self.moves += self.aliases.get(alias) != version
            self.aliases[alias] = version
            self.head = moved

    @precondition(lambda self: self.digests)
    @rule(data=st.data())
    def yank(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.digests)))
        self.head = self.head.withdraw(version, "yanked", "wrong data", TIME)
        self.yanked[version] = "wrong data"

    @precondition(lambda self: self.digests)
    @rule(data=st.data(), how=st.sampled_from(["recalled", "deleted"]))
    def withdraw_for_all(self, data: st.DataObject, how: Literal["recalled", "deleted"]) -> None:
        version = data.draw(st.sampled_from(sorted(self.digests)))
        self.head = self.head.withdraw(version, how, "stolen data", TIME)
        self.gone.add(version)

    @rule(alias=ALIASES)
    def untag(self, alias: str) -> None:
        self.head = self.head.untag(alias, TIME)
        self.moves += self.aliases.pop(alias, 0) > 0

    def resolved(self, reference: Reference) -> Record | None:
        try:
            return self.head.resolve(reference)
        except (NotFound, Recalled):
            return None

    @invariant()
    def every_reference_means_what_the_model_says(self) -> None:
        usable = [version for version in self.digests if version not in self.yanked.keys() | self.gone]
        latest = self.resolved(Reference(NAME))
        assert (latest.version if latest else None) == max(usable, default=None)
        assert self.resolved(Reference(NAME, alias="latest")) == latest
        for version, expected in self.digests.items():
            pinned = self.resolved(Reference(NAME, digest=expected))
            assert (pinned is None) == (version in self.gone)
            assert pinned is None or (pinned.version, pinned.yanked) == (version, self.yanked.get(version))
            assert (self.resolved(Reference(NAME, version=version)) is None) == (version not in usable)
        for alias, version in self.aliases.items():
            found = self.resolved(Reference(NAME, alias=alias))
            assert (found.version if found else None) == (version if version in usable else None)

    @invariant()
    def nothing_is_lost_on_paper(self) -> None:
        assert [record.version for record in self.head.versions] == sorted(self.digests)
        assert len(self.head.history) == self.moves
        replayed = {move.alias: move.version for move in self.head.history}
        assert {alias: version for alias, version in replayed.items() if version} == self.aliases == self.head.aliases
        assert Head.decode(self.head.encode(), "it") == self.head


TestHead = HeadMachine.TestCase


def two_versions() -> Head:
    return Head(adapter=str(NAME)).publish(digest(1), TIME, "first").publish(digest(2), TIME, "second")


def test_a_publish_is_found_by_its_nonce() -> None:
    head = two_versions()
    assert head.published("second") == head.versions[1]
    assert head.published("third") is None


def test_the_same_manifest_is_not_published_twice() -> None:
    with pytest.raises(Conflict, match=r"published already"):
        two_versions().publish(digest(1), TIME, "third")


def test_a_yanked_version_says_why_and_how_to_get_it() -> None:
    head = two_versions().tag("prod", 2, TIME).withdraw(2, "yanked", "leaked names", TIME)
    for reference in (Reference(NAME, version=2), Reference(NAME, alias="prod")):
        with pytest.raises(NotFound, match=rf"acme/legal:2 was yanked: leaked names\. .*acme/legal@{digest(2)}"):
            head.resolve(reference)
    assert head.resolve(Reference(NAME)).version == 1
    with pytest.raises(NotFound, match=r"versions 1 to 2 .* Every one of them was withdrawn"):
        head.withdraw(1, "yanked", "too", TIME).resolve(Reference(NAME))


def test_unknown_versions_and_aliases_name_what_there_is() -> None:
    head = two_versions().tag("prod", 1, TIME)
    for reference in (Reference(NAME, version=3), Reference(NAME, alias="test"), Reference(NAME, digest=digest(9))):
        with pytest.raises(NotFound, match=r"There is no acme/legal.* versions 1 to 2 and the aliases: prod\."):
            head.resolve(reference)


def test_latest_can_not_be_set() -> None:
    with pytest.raises(InvalidName, match=r"by itself"):
        two_versions().tag("latest", 1, TIME)


def test_a_move_that_expects_otherwise_says_where_the_alias_points() -> None:
    head = two_versions().tag("prod", 1, TIME)
    with pytest.raises(Conflict, match=r"acme/legal:prod points to version 1, not 2"):
        head.tag("prod", 2, TIME, expect=2)
    with pytest.raises(Conflict, match=r"acme/legal:test does not exist, not 1"):
        head.tag("test", 2, TIME, expect=1)
    assert head.tag("prod", 2, TIME, expect=1).aliases == {"prod": 2}


def test_where_an_alias_was_before() -> None:
    head = two_versions()
    with pytest.raises(NotFound, match=r"acme/legal:prod was never set"):
        head.before("prod")
    head = head.tag("prod", 1, TIME)
    assert head.before("prod") == 0
    assert head.tag("prod", 2, TIME).before("prod") == 1
    assert head.untag("prod", TIME).before("prod") == 1
    with pytest.raises(Conflict, match=r"points to version 1, not 2"):
        head.untag("prod", TIME, expect=2)


def moved(head: Head, count: int, first: int = 0) -> Head:
    """A head of two versions whose alias `prod` went to and fro."""
    for number in range(first, first + count):
        head = head.tag("prod", 1 + number % 2, f"2026-01-02T03:04:05.{number:06}Z")
    return head


def test_a_head_does_not_grow_with_every_move() -> None:
    """Whoever resolves a name reads all of its head."""
    head = moved(two_versions().tag("rare", 1, TIME).tag("rare", 2, TIME), 5000)
    assert len(head.history) <= MOST_MOVES
    assert head.forgotten + len(head.history) == 5002
    assert (head.before("rare"), head.before("prod"), head.aliases) == (1, 1, {"prod": 2, "rare": 2})
    assert [move.at for move in head.history[-KEPT_MOVES:]] == sorted(move.at for move in head.history[-KEPT_MOVES:])
    assert list(mistakes(head)) == []
    assert len(head.encode()) < 40_000


@pytest.mark.parametrize("then", [0, 1, 399, 400, 401, 5000])
@pytest.mark.parametrize("before", [0, 1, 250, 401, 1000])
def test_a_mirror_follows_a_head_that_forgets(before: int, then: int) -> None:
    held = moved(two_versions(), before)
    source = moved(held, then, before)
    assert following(held, source, 2) == source
    if then < 200:
        with pytest.raises(Conflict, match=r"were moved in the target"):
            following(held.tag("theirs", 1, TIME), source, 2)


def test_recalled_and_deleted_versions_are_for_nobody() -> None:
    head = two_versions().withdraw(1, "recalled", "poisoned", TIME).withdraw(2, "deleted", "asked for", TIME)
    for reference in (Reference(NAME, version=1), Reference(NAME, digest=digest(1))):
        with pytest.raises(Recalled, match=r"acme/legal:1 was recalled and must not be used: poisoned"):
            head.resolve(reference)
    for reference in (Reference(NAME, version=2), Reference(NAME, digest=digest(2))):
        with pytest.raises(NotFound, match=r"acme/legal:2 was deleted: asked for"):
            head.resolve(reference)
    assert head.latest is None
    assert head.publish(digest(3), TIME, "third").versions[-1].version == 3


def test_who_may_read() -> None:
    head = two_versions()
    assert [head.visible_to(tenant) for tenant in ("acme", "globex")] == [True, False]
    shared = head.share("shared", ("globex",))
    assert [shared.visible_to(tenant) for tenant in ("acme", "globex", "initech")] == [True, True, False]
    assert head.share("public").visible_to("initech")
    assert shared.share("private").encode() == head.encode()


def test_a_move_is_known_by_its_nonce() -> None:
    head = Head(adapter=str(NAME)).publish(digest(1), TIME, "a").publish(digest(2), TIME, "b")
    moved = head.tag("prod", 1, TIME, expect=0, nonce="first")
    assert moved.tag("prod", 1, TIME, expect=0, nonce="first") is moved
    with pytest.raises(Conflict):
        moved.tag("prod", 1, TIME, expect=0, nonce="another")
    with pytest.raises(Conflict):
        moved.tag("test", 1, TIME, expect=7, nonce="first")
    since = moved.tag("prod", 2, TIME).withdraw(1, "deleted", "old", TIME)
    assert since.tag("prod", 1, TIME, expect=0, nonce="first") is since, "it was made, whatever happened then"
    removed = since.untag("prod", TIME, expect=2, nonce="last")
    assert removed.untag("prod", TIME, expect=2, nonce="last") is removed
    with pytest.raises(Conflict):
        removed.untag("prod", TIME, expect=2)
