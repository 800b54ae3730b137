"""Keys are random, kept as hashes, and the operator's outlives a restart."""

import sqlite3
import stat
from pathlib import Path

from swapmeet.keys import KNOWN_SECONDS, Holder, Keys, admin_key


def test_only_hashes_are_stored(tmp_path: Path) -> None:
    keys = Keys(f"sqlite:///{tmp_path}/keys.db")
    key = keys.create("acme", "admin")
    assert keys.holder_of(key) == Holder("acme", "admin")
    assert keys.holder_of(key + "x") is None
    assert keys.holder_of("") is None
    raw = (tmp_path / "keys.db").read_bytes()
    assert key.encode() not in raw
    assert sqlite3.connect(tmp_path / "keys.db").execute("select count(*) from api_keys").fetchone() == (1,)


def test_the_operators_key_is_made_once_and_private(tmp_path: Path) -> None:
    keys = Keys(f"sqlite:///{tmp_path}/keys.db")
    key = admin_key(keys, tmp_path)
    assert admin_key(keys, tmp_path) == key
    assert stat.S_IMODE((tmp_path / "admin.key").stat().st_mode) == 0o600
    (tmp_path / "admin.key").write_text("sm-forged")
    assert admin_key(keys, tmp_path) not in {key, "sm-forged"}


def test_a_found_key_is_known_for_a_second_and_no_longer(tmp_path: Path) -> None:
    now = 0.0
    keys = Keys(f"sqlite:///{tmp_path}/keys.db", clock=lambda: now)
    key = keys.create("acme", "infer")
    assert keys.known_holder_of(key) is None
    assert keys.holder_of(key) == keys.known_holder_of(key) == Holder("acme", "infer")
    assert keys.holder_of("sm-other") is None
    assert keys.known_holder_of("sm-other") is None
    now = KNOWN_SECONDS
    assert keys.known_holder_of(key) is None
