"""Keys are random, kept as hashes, end when they should, and the operator's outlives a restart."""

import stat
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from swapmeet.database import Database
from swapmeet.database.tables import KeyRow
from swapmeet.database.tables.base import now
from swapmeet.errors import Conflict, NotFound
from swapmeet.tenancy import OPERATOR, Caller, Tenancy
from swapmeet.tenancy.keys import KNOWN_SECONDS
from swapmeet.tenancy.operator_key import operator_key
from swapmeet.tenancy.scopes import ROLES, SCOPES, expand

BOSS = Caller(OPERATOR, "key-0", frozenset({"admin"}))


@pytest.fixture
def books(database: Database) -> Tenancy:
    books = Tenancy(database)
    books.tenants.ensure("acme")
    return books


def test_a_key_gives_its_caller(books: Tenancy) -> None:
    issued = books.keys.create("acme", ["developer", "metrics"], name="laptop", by=BOSS)
    assert issued.key.startswith("sm-")
    caller = books.keys.caller_of(issued.key)
    assert caller == Caller("acme", issued.row.id, ROLES["developer"] | {"metrics"})
    assert not caller.operator
    for wrong in (issued.key + "x", issued.key[:-1], "", "sm-", issued.row.digest, issued.row.id, "\0", "ü\ud800"):
        assert books.keys.caller_of(wrong) is None
    kept = books.keys.get("acme", issued.row.id)
    assert (kept.name, kept.hint, kept.created_by) == ("laptop", issued.key[-4:], "key-0")
    assert issued.key not in repr(issued)


def test_only_hashes_are_stored(tenancy: Tenancy, key_of: Callable[..., str], tmp_path: Path) -> None:
    key = key_of("acme", "admin")
    tenancy.keys.caller_of(key)
    tenancy.flush()
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("tenancy.db*"))
    assert key.encode() not in stored
    assert key[3:40].encode() not in stored
    assert tenancy.keys.page("acme")[0][0].digest.encode() in stored, "the search would have found it"


def test_scopes_and_roles() -> None:
    assert expand(["reader", "infer"]) == {"read", "infer"}
    assert set().union(*ROLES.values()) == set(SCOPES) - {"metrics"}
    with pytest.raises(ValueError, match="'Infer', 'root': no such scope or role"):
        expand(["root", "infer", "Infer"])
    with pytest.raises(ValueError, match="needs a scope"):
        expand([])
    assert Caller("acme", "", frozenset({"train"})).may("read"), "who submits jobs may look at them"
    assert not Caller("acme", "", frozenset({"infer"})).may("read")
    assert not Caller("acme", "", frozenset({"admin"})).may("metrics")
    assert BOSS.may("metrics")
    assert not Caller(OPERATOR, "", frozenset({"infer"})).operator


def test_a_revoked_key_is_no_good_at_once_here_and_within_a_second_elsewhere(database: Database) -> None:
    clock = [0.0]
    here, there = (Tenancy(database, clock=lambda: clock[0]) for _ in range(2))
    here.tenants.ensure("acme")
    issued = here.keys.create("acme", ["infer"])
    for each in (here, there):
        assert each.keys.known_caller(issued.key) is None
        assert each.keys.caller_of(issued.key) == each.keys.known_caller(issued.key) is not None
    for _ in range(2):
        here.keys.revoke("acme", issued.row.id, BOSS)
    assert here.keys.known_caller(issued.key) is None
    assert there.keys.known_caller(issued.key) is not None
    clock[0] = KNOWN_SECONDS
    assert there.keys.known_caller(issued.key) is None
    assert there.keys.caller_of(issued.key) is here.keys.caller_of(issued.key) is None
    assert [row.action for row in here.audit.page("acme")[0]] == ["key.revoke"], "the second time changed nothing"


def test_a_key_expires(books: Tenancy) -> None:
    good = books.keys.create("acme", ["infer"], expires_at=now() + timedelta(hours=1)).key
    over = books.keys.create("acme", ["infer"], expires_at=now() - timedelta(seconds=1)).key
    assert books.keys.caller_of(good)
    assert books.keys.caller_of(over) is None


def test_rotation_gives_the_same_rights_and_a_period_of_grace(books: Tenancy) -> None:
    old = books.keys.create("acme", ["reader"], name="ci", expires_at=now() + timedelta(days=30))
    new = books.keys.rotate("acme", old.row.id, timedelta(hours=1), BOSS)
    assert new.row.id != old.row.id
    assert (new.row.scopes, new.row.name, new.row.tenant) == (["read"], "ci", "acme")
    assert new.row.expires_at
    assert timedelta(days=29) < new.row.expires_at - now() <= timedelta(days=30)
    assert books.keys.caller_of(old.key)
    assert books.keys.caller_of(new.key)
    kept = books.keys.get("acme", old.row.id)
    assert kept.expires_at
    assert kept.expires_at - now() <= timedelta(hours=1)
    with pytest.raises(Conflict, match=new.row.id):
        books.keys.rotate("acme", old.row.id, timedelta(days=90), BOSS)
    at_once = books.keys.rotate("acme", new.row.id, timedelta(0), BOSS)
    assert books.keys.caller_of(new.key) is None
    books.keys.revoke("acme", at_once.row.id, BOSS)
    with pytest.raises(Conflict, match="has ended"):
        books.keys.rotate("acme", at_once.row.id, timedelta(0), BOSS)


def test_keys_of_others_are_as_if_they_were_not_there(books: Tenancy) -> None:
    books.tenants.ensure("ben")
    own = books.keys.create("acme", ["infer"])
    for call in (
        lambda: books.keys.get("ben", own.row.id),
        lambda: books.keys.revoke("ben", own.row.id, BOSS),
        lambda: books.keys.rotate("ben", own.row.id, timedelta(0), BOSS),
        lambda: books.keys.page("ben", after=own.row.id),
        lambda: books.keys.get(None, "key-abc"),
        lambda: books.keys.get(None, own.key),
        lambda: books.keys.get(None, "\0"),
    ):
        with pytest.raises(NotFound, match="There is no key of this id") as told:
            call()
        assert own.key not in str(told.value)
    assert books.keys.caller_of(own.key)
    with pytest.raises(NotFound, match="no tenant 'nobody'"):
        books.keys.create("nobody", ["infer"])


def test_pages_hold_each_key_once_newest_first(books: Tenancy) -> None:
    made = [books.keys.create("acme", ["infer"], name=str(n)).row.id for n in range(7)]
    found: list[str] = []
    more, after = True, None
    while more:
        rows, more = books.keys.page("acme", after, 3)
        found += [row.id for row in rows]
        after = found[-1]
    assert sorted(found) == sorted(made)
    assert found[0] in made[-2:]


def test_the_last_use_is_written_lazily(books: Tenancy) -> None:
    issued = books.keys.create("acme", ["infer"])

    def used() -> KeyRow:
        return books.keys.get("acme", issued.row.id)

    books.keys.caller_of(issued.key)
    assert used().last_used_at is None
    books.flush()
    first = used().last_used_at
    assert first is not None
    books.keys.caller_of(issued.key)
    books.flush()
    assert used().last_used_at == first, "once a minute is enough"


def test_a_key_of_a_suspended_tenant_says_so(books: Tenancy) -> None:
    key = books.keys.create("acme", ["infer"]).key
    books.tenants.change("acme", {}, BOSS, suspended=True)
    assert (caller := books.keys.caller_of(key))
    assert caller.suspended
    books.tenants.change("acme", {}, BOSS, suspended=False)
    assert (caller := books.keys.caller_of(key))
    assert not caller.suspended


def test_the_operators_key_is_made_once_and_private(tenancy: Tenancy, tmp_path: Path) -> None:
    key = operator_key(tenancy, tmp_path)
    assert operator_key(tenancy, tmp_path) == key
    caller = tenancy.keys.caller_of(key)
    assert caller
    assert caller.operator
    assert stat.S_IMODE((tmp_path / "admin.key").stat().st_mode) == 0o600
    (tmp_path / "admin.key").write_text("sm-forged")
    second = operator_key(tenancy, tmp_path)
    assert second not in {key, "sm-forged"}
    (tmp_path / "admin.key").write_bytes(b"\xff\0")
    third = operator_key(tenancy, tmp_path)
    tenancy.keys.revoke(OPERATOR, tenancy.keys.page(OPERATOR)[0][0].id, BOSS)
    assert operator_key(tenancy, tmp_path) != third, "nobody is shut out for good"


def test_a_weaker_key_of_the_operator_s_tenant_is_not_taken_for_the_operator_s(
    tenancy: Tenancy, tmp_path: Path
) -> None:
    tenancy.tenants.ensure(OPERATOR)
    weak = tenancy.keys.create(OPERATOR, ["infer"]).key
    (tmp_path / "admin.key").write_text(weak)
    assert operator_key(tenancy, tmp_path) != weak
